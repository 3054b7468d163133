package runner

import (
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/runner/runnertest"
)

// TestNothingLeaks starts and ends runners in every way, 50 times over, and counts what is left of them.
func TestNothingLeaks(t *testing.T) {
	good := runnertest.Options{}
	ways := map[string]func(*testing.T, *RuntimeDir){
		"stop while idle": func(t *testing.T, dir *RuntimeDir) {
			mustStop(t, startIn(t, dir, good))
		},
		"stop while generating": func(t *testing.T, dir *RuntimeDir) {
			r := startIn(t, dir, runnertest.Options{Repeat: endless, Interval: time.Millisecond})
			mustLoad(t, r)
			st, err := r.Generate(t.Context(), prompt("x "))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			firstDelta(t, st)
			mustStop(t, r)
		},
		"kill": func(t *testing.T, dir *RuntimeDir) {
			r := startIn(t, dir, good)
			mustLoad(t, r)
			if _, _, err := readAll(mustGenerate(t, t.Context(), r, "x y z")); err != nil {
				t.Fatal(err)
			}
			r.kill()
			mustEnd(t, r)
		},
		"death": func(t *testing.T, dir *RuntimeDir) {
			r := startIn(t, dir, runnertest.Options{Crash: runnertest.CrashAtStep})
			mustLoad(t, r)
			if _, _, err := readAll(mustGenerate(t, t.Context(), r, "x")); err == nil {
				t.Fatal("it did not crash")
			}
			mustEnd(t, r)
		},
		"failed start": func(t *testing.T, dir *RuntimeDir) {
			p, _ := fakeParams(t, runnertest.Options{Handshake: runnertest.HandshakeGarbage})
			p.Dir = dir
			if _, err := Start(t.Context(), p); err == nil {
				t.Fatal("it started")
			}
		},
	}
	dir := testDir(t)
	round := func() {
		for name, way := range ways {
			// A subtest each, so that its cleanups are not counted as leaks.
			t.Run(name, func(t *testing.T) { way(t, dir) })
		}
	}
	round() // what is made once is made now
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 10 {
		round()
	}
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > goroutines {
		if time.Now().After(deadline) {
			var stacks strings.Builder
			_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			t.Fatalf("%d goroutines run, %d did before:\n%s", runtime.NumGoroutine(), goroutines, &stacks)
		}
		time.Sleep(time.Millisecond)
	}
	if got := openFiles(t); got > files {
		t.Errorf("%d files are open, %d were before", got, files)
	}
	left, err := os.ReadDir(dir.Path())
	if err != nil || len(left) != 1 { // the lock
		t.Errorf("the runtime directory holds %v, %v", left, err)
	}
	if children := zombies(t); children != "" {
		t.Errorf("children that nobody waited for: %s", children)
	}
}

func startIn(t *testing.T, dir *RuntimeDir, o runnertest.Options) *Runner {
	t.Helper()
	p, _ := fakeParams(t, o)
	p.Dir = dir
	return startParams(t, p)
}

// openFiles counts this process's file descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	for _, path := range []string{"/proc/self/fd", "/dev/fd"} {
		if entries, err := os.ReadDir(path); err == nil {
			return len(entries)
		}
	}
	t.Skip("open files cannot be counted here")
	return 0
}

// zombies lists this process's dead children where the system shows processes as files.
func zombies(t *testing.T) string {
	t.Helper()
	var found []string
	entries, _ := os.ReadDir("/proc")
	me := " " + strconv.Itoa(os.Getpid()) + " "
	for _, entry := range entries {
		data, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err == nil && strings.Contains(string(data), ") Z"+me) {
			found = append(found, string(data))
		}
	}
	return strings.Join(found, "\n")
}
