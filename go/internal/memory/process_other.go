//go:build !linux

package memory

import "github.com/shirou/gopsutil/v4/process"

func privateOf(*process.MemoryInfoExStat) (uint64, bool) { return 0, false }
