//go:build unix

package mlxmodel_test

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel/mlxmodeltest"
)

// Opening a named pipe would wait for a writer for ever, and a device never ends.
func TestOpenRefusesPipes(t *testing.T) {
	root := mlxmodeltest.Write(t, files{})
	if err := syscall.Mkfifo(filepath.Join(root, "config.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir, err := mlxmodel.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := mlxmodel.Inspect(dir); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}
