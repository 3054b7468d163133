package memory

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/shirou/gopsutil/v4/mem"
	"github.com/shirou/gopsutil/v4/process"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// Kinds of devices.
const (
	CPU   = "cpu"
	Metal = "metal"
	CUDA  = "cuda"
)

// Device is what runners compute on.
type Device struct {
	Kind string
	// Total is how much memory programs should use of it: of unified memory a share, of a discrete GPU all. 0: the
	// machine's memory is the only limit.
	Total uint64
	// Unified memory is the machine's own.
	Unified bool
}

// Bounds of what is left to other programs when nobody says how much.
const (
	reserveShare = 20
	minReserve   = 256 << 20
	maxReserve   = 2 << 30
	// defaultBase is the private memory of a runner without a model; it is measured as soon as there is one.
	defaultBase = 100 << 20
)

// Params configures a Machine.
type Params struct {
	// Limit is how much all models together may take. 0: what is free.
	Limit uint64
	// Overhead is left free beside the reserve.
	Overhead uint64
	// Context is the default context length; 0: each model's own.
	Context int

	// system replaces the operating system in tests.
	system func() (total, available uint64)
}

// Machine knows what the machine has. Its methods may be called by any goroutine and do not wait for runners.
type Machine struct {
	params Params

	mu     sync.Mutex
	device Device
	// deviceUsed is what programs that are not ours held of a discrete device when it was last looked at.
	deviceUsed uint64
	base       uint64
	lastTotal  uint64
	lastFree   uint64
}

// NewMachine returns a Machine that takes Apple's for one with a unified GPU and all others for a CPU until a runner
// says better.
func NewMachine(p Params) *Machine {
	if p.system == nil {
		p.system = system
	}
	m := &Machine{params: p, base: defaultBase, device: Device{Kind: CPU, Unified: true}}
	if runtime.GOOS == "darwin" {
		m.device.Kind = Metal
	}
	return m
}

// Learn takes what a runner tells of its device and of itself; held is what all runners hold of the device.
func (m *Machine) Learn(st *runnerpb.StatusResponse, held uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := st.GetDevice(); d != nil {
		m.device = Device{Kind: d.GetKind(), Total: d.GetTotalBytes(), Unified: d.GetUnified()}
		if used := d.GetTotalBytes() - min(d.GetFreeBytes(), d.GetTotalBytes()); !d.GetUnified() {
			m.deviceUsed = used - min(held, used)
		}
	}
	if private := st.GetMemory().GetPrivateBytes(); st.GetImported() && st.GetModel() == nil && private > 0 {
		m.base = private
	}
}

// Device returns what runners compute on, as far as is known.
func (m *Machine) Device() Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.device
}

// Base is the memory of a runner without a model.
func (m *Machine) Base() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.base
}

// Available is what models may take beyond the held bytes that runners have now: what is free, less the overhead that
// is left to other programs.
func (m *Machine) Available(held uint64) uint64 {
	total, free := m.params.system()
	m.mu.Lock()
	defer m.mu.Unlock()
	if total == 0 {
		// The system did not answer; what it said last has to do.
		total, free = m.lastTotal, m.lastFree
	}
	m.lastTotal, m.lastFree = total, free
	switch d := m.device; {
	case d.Total > 0 && d.Unified:
		free = min(free, d.Total-min(held, d.Total))
	case d.Total > 0:
		free = d.Total - min(held+m.deviceUsed, d.Total)
		total = d.Total
	}
	free -= min(m.overhead(total), free)
	if limit := m.params.Limit; limit > 0 {
		free = min(free, limit-min(held, limit))
	}
	return free
}

// Overhead is what is left to other programs.
func (m *Machine) Overhead() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.overhead(m.lastTotal)
}

func (m *Machine) overhead(total uint64) uint64 {
	if m.params.Limit > 0 {
		return m.params.Overhead
	}
	return m.params.Overhead + min(max(total/reserveShare, minReserve), maxReserve)
}

// Context is the default context length, 0 for each model's own.
func (m *Machine) Context() int { return m.params.Context }

// system asks the operating system, and the container that the host may run in.
func system() (total, available uint64) {
	v, err := mem.VirtualMemoryWithContext(context.Background())
	if err != nil {
		return 0, 0
	}
	total, available = v.Total, v.Available
	if limit, used, ok := cgroup("/sys/fs/cgroup"); ok && limit < total {
		total = limit
		available = min(available, limit-min(used, limit))
	}
	return total, available
}

// cgroup returns the memory limit of the container, and what of it is used and cannot be taken back from caches.
func cgroup(root string) (limit, used uint64, ok bool) {
	number := func(name string) uint64 {
		raw, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return math.MaxUint64
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
		if err != nil {
			return math.MaxUint64
		}
		return n
	}
	limit, used = number("memory.max"), number("memory.current")
	if limit == math.MaxUint64 || used == math.MaxUint64 {
		return 0, 0, false
	}
	raw, err := os.ReadFile(filepath.Join(root, "memory.stat"))
	if err != nil {
		return limit, used, true
	}
	for line := range strings.Lines(string(raw)) {
		if rest, found := strings.CutPrefix(line, "inactive_file "); found {
			if n, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 64); err == nil {
				used -= min(n, used)
			}
		}
	}
	return limit, used, true
}

// OfProcess is the memory that a process does not share with others, 0 if it is gone. Only Linux tells what is shared.
func OfProcess(pid int) uint64 {
	p := process.Process{Pid: int32(pid)}
	if info, err := p.MemoryInfoEx(); err == nil && info != nil {
		if private, ok := privateOf(info); ok {
			return private
		}
	}
	info, err := p.MemoryInfo()
	if err != nil {
		return 0
	}
	return info.RSS
}
