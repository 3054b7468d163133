package config

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Python is the interpreter that runs models.
type Python struct {
	Path   string
	Source string // how it was found, for people
}

// FindPython decides which interpreter runs models: the one that the environment names (the `ollmlx`
// launcher names its own), else the one of the virtual environment that the program lies in, else
// python3 on PATH. A named interpreter that does not exist is an error and not a reason to try others,
// because another one would lack MLX and fail later and less clearly.
func (c Config) FindPython() (Python, error) {
	return findPython(c.Python, executable(""), exec.LookPath)
}

func findPython(named, exe string, lookPath func(string) (string, error)) (Python, error) {
	if named != "" {
		path, err := lookPath(named)
		if err != nil {
			return Python{}, fmt.Errorf("OLLMLX_PYTHON=%s cannot be run; set it to a Python that has ollmlx installed, or unset it", named)
		}
		return Python{Path: path, Source: "OLLMLX_PYTHON"}, nil
	}
	if exe != "" {
		if path := environmentPython(filepath.Dir(exe)); path != "" {
			return Python{Path: path, Source: "the environment of the program"}, nil
		}
	}
	for _, name := range []string{"python3", "python"} {
		if path, err := lookPath(name); err == nil {
			return Python{Path: path, Source: "PATH"}, nil
		}
	}
	return Python{}, errors.New("no Python found; install ollmlx with pip, or set OLLMLX_PYTHON to a Python that has it")
}

// environmentPython is python3 in dir itself or in the virtual environment around it, or "".
func environmentPython(dir string) string {
	if path := filepath.Join(dir, "python3"); isFile(path) {
		return path
	}
	for {
		path := filepath.Join(dir, "bin", "python3")
		if isFile(filepath.Join(dir, "pyvenv.cfg")) && isFile(path) {
			return path
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return ""
		}
		dir = parent
	}
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
