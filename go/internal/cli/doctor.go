package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/ollmlx/ollmlx/go/internal/config"
	"github.com/ollmlx/ollmlx/go/internal/version"
)

// pythonTimeout bounds the Python half of the examination, which imports MLX.
const pythonTimeout = 2 * time.Minute

// hostReport is what the Go half of `ollmlx doctor` finds.
type hostReport struct {
	Version      string   `json:"version"`
	Commit       string   `json:"commit"`
	Go           string   `json:"go"`
	Program      string   `json:"program"`
	Python       string   `json:"python,omitempty"`
	PythonSource string   `json:"python_source,omitempty"`
	Models       string   `json:"models"`
	Bundled      string   `json:"bundled_models"`
	Cache        string   `json:"cache"`
	Address      string   `json:"address"`
	Server       string   `json:"server"`
	Problems     []string `json:"problems"`
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine the installation and say what is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, release := interruptible(cmd.Context())
			defer release()
			return a.doctor(ctx, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (a *app) doctor(ctx context.Context, asJSON bool) error {
	report := a.examine(ctx)
	python, pythonErr := a.runPythonDoctor(ctx, report.Python, asJSON)
	healthy := len(report.Problems) == 0 && pythonErr == nil
	if asJSON {
		both := struct {
			Host   hostReport      `json:"host"`
			Python json.RawMessage `json:"python"`
		}{report, python}
		if pythonErr != nil && python == nil {
			both.Host.Problems = append(both.Host.Problems, pythonErr.Error())
		}
		encoder := json.NewEncoder(a.out)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(both); err != nil {
			return err
		}
	} else {
		if err := writeReport(a, report); err != nil {
			return err
		}
		a.out.Write(python)
		if pythonErr != nil && python == nil && report.Python != "" {
			fmt.Fprintf(a.out, "  problem: %v\n", pythonErr)
		}
	}
	if !healthy {
		return errReported
	}
	return nil
}

func (a *app) examine(ctx context.Context) hostReport {
	r := hostReport{
		Version: version.Version, Commit: version.Commit, Go: runtime.Version(),
		Models: a.config.ModelsDir, Cache: a.config.CacheDir, Address: a.config.Host.URL().String(),
		Problems: []string{},
	}
	r.Program, _ = os.Executable()
	if python, err := a.config.FindPython(); err != nil {
		r.Problems = append(r.Problems, err.Error())
	} else {
		r.Python, r.PythonSource = python.Path, python.Source
	}
	if err := checkModelsDir(a.config); err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	if r.Bundled = a.config.BundledModelsDir; len(bundledModels(r.Bundled)) == 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("no bundled model in %q: `ollmlx run` without a model will not work", r.Bundled))
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	apiVersion, program, err := a.serverVersions(ctx)
	switch {
	case err != nil:
		r.Server = "none is running"
	case program == "" && apiVersion != version.OllamaAPI:
		r.Server = "not ollmlx; it reports version " + apiVersion
		r.Problems = append(r.Problems, "another program serves "+r.Address+"; stop it, or set OLLAMA_HOST to another port")
	default:
		r.Server = "running, version " + orElse(program, "unknown")
	}
	return r
}

// checkModelsDir tells why models could not be stored, if so. It leaves nothing behind.
func checkModelsDir(c config.Config) error {
	if c.ModelsDir == "" {
		return errors.New("there is no home directory to keep models in; set OLLAMA_MODELS")
	}
	// What does not exist yet can be made if the nearest existing directory above can be written to.
	dir := c.ModelsDir
	for {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			return fmt.Errorf("%s is not a directory; set OLLAMA_MODELS", dir)
		}
		if err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return err
		}
		dir = parent
	}
	probe, err := os.CreateTemp(dir, ".ollmlx-doctor-*")
	if err != nil {
		return fmt.Errorf("models cannot be stored in %s: %w", c.ModelsDir, err)
	}
	probe.Close()
	return os.Remove(probe.Name())
}

func bundledModels(dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		if _, err := os.Stat(filepath.Join(dir, entry.Name(), "config.json")); err == nil {
			names = append(names, entry.Name())
		}
	}
	return slices.Sorted(slices.Values(names))
}

// runPythonDoctor runs the half of the examination that needs MLX. Output without an error is a clean
// bill; output with an error tells the problems itself; an error alone means that it did not run.
func (a *app) runPythonDoctor(ctx context.Context, python string, asJSON bool) (output []byte, err error) {
	if python == "" {
		return nil, errors.New("no Python to examine")
	}
	ctx, cancel := context.WithTimeout(ctx, pythonTimeout)
	defer cancel()
	args := []string{"-m", "ollmlx", "doctor"}
	if asJSON {
		args = append(args, "--json")
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, python, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if stdout.Len() > 0 && (!asJSON || json.Valid(stdout.Bytes())) {
		return stdout.Bytes(), err
	}
	if err == nil {
		err = errors.New("it printed nothing")
	}
	t := tail{limit: 1 << 10}
	t.Write(stderr.Bytes())
	return nil, fmt.Errorf("%s cannot run ollmlx (%v): %s", python, err, t.lastLines())
}

func writeReport(a *app, r hostReport) error {
	fmt.Fprintln(a.out, "Host")
	err := writeTable(a.out, "  ", [][]string{
		{"version", fmt.Sprintf("%s (commit %s, %s)", r.Version, r.Commit, r.Go)},
		{"program", r.Program},
		{"python", orElse(r.Python, "not found") + map[bool]string{true: " (from " + r.PythonSource + ")"}[r.Python != ""]},
		{"models", r.Models},
		{"bundled models", r.Bundled},
		{"cache", r.Cache},
		{"address", r.Address},
		{"server", r.Server},
	})
	for _, problem := range r.Problems {
		fmt.Fprintf(a.out, "  problem: %s\n", problem)
	}
	return err
}
