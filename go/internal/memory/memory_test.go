package memory

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

const mib = 1 << 20

func TestFit(t *testing.T) {
	need := Need{Base: 100 * mib, Weights: 200 * mib, WideWeights: 400 * mib, KVPerToken: 1024, WideKVPerToken: 2048, Context: 8192}
	for _, tt := range []struct {
		name     string
		free     uint64
		wide     bool
		min, all uint64
	}{
		// 4096 tokens are the least, 8 requests of 8192 tokens as much as is useful.
		{"plenty", 16 << 30, true, (100 + 400 + 8) * mib, (100 + 400 + 128) * mib},
		{"wide weights would take more than half", 1000 * mib, false, (100 + 200 + 4) * mib, (100 + 200 + 64) * mib},
		{"half of what is left is for others", 404 * mib, false, 304 * mib, (304 + 50) * mib},
		{"just", 304 * mib, false, 304 * mib, 304 * mib},
		{"too little", 10 * mib, false, 304 * mib, 304 * mib},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := need.Fit(tt.free)
			if p.Wide != tt.wide || p.Min() != tt.min || p.Total() != tt.all {
				t.Errorf("got wide %v, least %d, in all %d MiB, want %v, %d, %d", p.Wide, p.Min()/mib, p.Total()/mib, tt.wide, tt.min/mib, tt.all/mib)
			}
		})
	}
	if p := (Need{Weights: 5}).Fit(1 << 40); p.KVMin == 0 || p.KV > slackKV {
		t.Errorf("a model without growing caches: %+v", p)
	}
}

func TestAvailable(t *testing.T) {
	machine := func(p Params, device Device) *Machine {
		p.system = func() (uint64, uint64) { return 16 << 30, 10 << 30 }
		m := NewMachine(p)
		if device.Kind != "" {
			m.Learn(&runnerpb.StatusResponse{Device: &runnerpb.Device{
				Kind: device.Kind, TotalBytes: device.Total, Unified: device.Unified, FreeBytes: device.Total / 2,
			}}, 1<<30)
		}
		return m
	}
	reserve := uint64(16<<30) / reserveShare
	for _, tt := range []struct {
		name   string
		params Params
		device Device
		held   uint64
		want   uint64
	}{
		{"what is free less the reserve", Params{}, Device{}, 0, 10<<30 - reserve},
		{"more is left if wished", Params{Overhead: 1 << 30}, Device{}, 0, 9<<30 - reserve},
		{"a limit", Params{Limit: 4 << 30}, Device{}, 1 << 30, 3 << 30},
		{"a limit that is reached", Params{Limit: 4 << 30}, Device{}, 5 << 30, 0},
		{"a limit above what is free", Params{Limit: 100 << 30}, Device{}, 0, 10 << 30},
		{"unified: no more than the device should use", Params{}, Device{Kind: Metal, Total: 8 << 30, Unified: true}, 2 << 30, 6<<30 - reserve},
		// Half of it is used, 1 GiB of that by our own runners.
		{"a device of its own", Params{}, Device{Kind: CUDA, Total: 8 << 30}, 2 << 30, 3<<30 - (8<<30)/reserveShare},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := machine(tt.params, tt.device).Available(tt.held); got != tt.want {
				t.Errorf("got %d MiB, want %d MiB", got/mib, tt.want/mib)
			}
		})
	}
	if total, free := system(); total == 0 || free == 0 || free > total {
		t.Errorf("the system says %d of %d bytes are free", free, total)
	}
	if got := OfProcess(os.Getpid()); got < 1*mib || got > 4<<30 {
		t.Errorf("this process is said to have %d bytes", got)
	}
}

func TestContainerLimits(t *testing.T) {
	dir := t.TempDir()
	if _, _, ok := cgroup(dir); ok {
		t.Error("there is a limit in an empty directory")
	}
	for name, content := range map[string]string{
		"memory.max": "1000\n", "memory.current": "800\n", "memory.stat": "anon 500\ninactive_file 300\nactive_file 1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if limit, used, ok := cgroup(dir); !ok || limit != 1000 || used != 500 {
		t.Errorf("got %d, %d, %v, want 1000, 500: files that can be dropped are free", limit, used, ok)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.max"), []byte("max\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := cgroup(dir); ok {
		t.Error(`"max" is a limit`)
	}
}

func TestTooBig(t *testing.T) {
	err := TooBig("m", 30<<30, 12<<30, 1<<30)
	if want := "model requires 30.0 GiB but only 12.0 GiB are available (after 1.0 GiB overhead)"; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %q, want it to begin with %q", err, want)
	}
	if !errors.Is(err, errdefs.ErrPrecondition) {
		t.Errorf("got %v", errdefs.Kind(err))
	}
}
