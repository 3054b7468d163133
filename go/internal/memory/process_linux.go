package memory

import "github.com/shirou/gopsutil/v4/process"

func privateOf(info *process.MemoryInfoExStat) (uint64, bool) {
	return info.RSS - min(info.Shared, info.RSS), true
}
