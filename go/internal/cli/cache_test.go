package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/config"
)

func TestCache(t *testing.T) {
	c := config.Config{CacheDir: t.TempDir(), PrefixCacheBytes: 2e9}
	model := filepath.Join(c.PrefixCacheDir(), strings.Repeat("0a", 16))
	ours := []string{
		filepath.Join(model, strings.Repeat("b", 40)+".kv.safetensors"),
		filepath.Join(model, "writing-12-0123abcd"),
	}
	others := []string{
		filepath.Join(model, "notes.txt"),
		filepath.Join(c.PrefixCacheDir(), "mine", strings.Repeat("b", 40)+".kv.safetensors"),
		filepath.Join(c.CacheDir, "runner", "kernel.so"),
	}
	run := func(args ...string) string {
		t.Helper()
		var out, errOut bytes.Buffer
		if code := Run(context.Background(), Params{Config: c, Out: &out, Err: &errOut}, args); code != ExitOK {
			t.Fatalf("%v: got code %d: %s", args, code, errOut.String())
		}
		return out.String()
	}
	if got := run("cache"); !strings.Contains(got, "prefixes     0\n") {
		t.Errorf("without a directory: got\n%s", got)
	}
	for _, path := range append(ours, others...) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, 1000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := run("cache")
	for _, want := range []string{c.PrefixCacheDir(), "prefixes     2\n", "size         2 KB\n", "limit        2 GB\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant %q in it", got, want)
		}
	}
	if got, want := run("cache", "clear"), "removed 2 prefixes, 2 KB\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, path := range ours {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s remains", path)
		}
	}
	for _, path := range others {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("what is not ours is gone: %v", err)
		}
	}
	c.PrefixCacheBytes = 0
	if got := run("cache"); !strings.Contains(got, "limit        off") {
		t.Errorf("switched off: got\n%s", got)
	}
}

func TestCacheWithoutADirectory(t *testing.T) {
	for _, args := range [][]string{{"cache"}, {"cache", "clear"}} {
		r := runCLI(t, config.Host{}, "", args...)
		if r.code != ExitError || !strings.Contains(r.err, "OLLMLX_CACHE") {
			t.Errorf("%v: got code %d and %q", args, r.code, r.err)
		}
	}
}
