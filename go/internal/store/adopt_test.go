package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestAdopt(t *testing.T) {
	content := []byte("weights of a model")
	digest := digestOf(content)
	for name, tt := range map[string]struct {
		file []byte // nil: there is none
		want bool
	}{
		"as it should be": {content, true},
		"changed":         {bytes.ToUpper(content), false},
		"cut":             {content[1:], false},
		"gone":            {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, Params{})
			path := filepath.Join(t.TempDir(), "cached")
			if tt.file != nil {
				if err := os.WriteFile(path, tt.file, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := s.Adopt(t.Context(), digest, int64(len(content)), path)
			if got != tt.want || err != nil {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
			if has, _ := s.HasBlob(digest); has != tt.want {
				t.Errorf("the blob is in the store: %v", has)
			}
			if left, _ := filepath.Glob(filepath.Join(s.tempFor(blobsDir), tempPrefix+"*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if tt.file == nil {
				return
			}
			// The file stays what it was, also when the blob goes.
			os.Remove(s.blobPath(digest))
			if kept, err := os.ReadFile(path); err != nil || !bytes.Equal(kept, tt.file) {
				t.Errorf("got %q, %v, want %q", kept, err, tt.file)
			}
		})
	}
}

func TestAdoptRefusesWhatIsNoFile(t *testing.T) {
	s := open(t, Params{})
	if got, err := s.Adopt(t.Context(), digestOf(nil), 0, t.TempDir()); got || err != nil {
		t.Errorf("a directory: got %v, %v", got, err)
	}
	if _, err := s.Adopt(t.Context(), "sha256:../../x", 0, "x"); err == nil {
		t.Error("an invalid digest was accepted")
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := s.Adopt(ctx, digestOf([]byte("x")), 1, path); got || !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: got %v, %v", got, err)
	}
}
