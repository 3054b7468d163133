package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/parser"

	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
)

// recipe is a Modelfile with its paths resolved: what to ask the server for, and the local files that
// the request refers to, by the name that the server shall know them by.
type recipe struct {
	request  *api.CreateRequest
	files    map[string]string // name in the model -> local path
	adapters map[string]string
	warnings []string
}

// withoutEffect are parameters of old Modelfiles that no engine has any more.
var withoutEffect = []string{
	"penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau", "mirostat_eta",
}

var draftLine = regexp.MustCompile(`(?im)^[ \t]*DRAFT[ \t].*$`)

// readModelfile parses a Modelfile whose relative paths start at dir. Upstream's parser knows the
// grammar; which files of a directory make a model is mlxmodel's to say, because MLX models hold files
// that upstream leaves out.
func readModelfile(r io.Reader, dir string) (*recipe, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	modelfile, err := parser.ParseFile(bytes.NewReader(text))
	if err != nil {
		// Upstream's parser does not know it, and would list the commands that there are.
		if draft := draftLine.Find(text); draft != nil {
			return nil, fmt.Errorf("%s: draft models are not supported yet; leave DRAFT out", bytes.TrimSpace(draft))
		}
		return nil, err
	}
	out := &recipe{files: map[string]string{}, adapters: map[string]string{}}
	var from string
	var rest parser.Modelfile
	for _, command := range modelfile.Commands {
		switch command.Name {
		case "model":
			files, err := localFiles(command.Args, dir, false)
			switch {
			case errors.Is(err, fs.ErrNotExist) && !looksLikePath(command.Args):
				from = command.Args
			case err != nil:
				return nil, fmt.Errorf("FROM %s: %w", command.Args, err)
			default:
				if err := merge(out.files, files); err != nil {
					return nil, fmt.Errorf("FROM %s: %w", command.Args, err)
				}
			}
		case "adapter":
			if len(out.adapters) > 0 {
				return nil, fmt.Errorf("ADAPTER %s: only one adapter is currently supported", command.Args)
			}
			files, err := localFiles(command.Args, dir, true)
			if err == nil {
				err = merge(out.adapters, files)
			}
			if err != nil {
				return nil, fmt.Errorf("ADAPTER %s: %w", command.Args, err)
			}
		default:
			if slices.Contains(withoutEffect, command.Name) {
				out.warnings = append(out.warnings, "PARAMETER "+command.Name+" has no effect any more")
				continue
			}
			// One by one, because the parser's errors do not tell which command they are about.
			if _, err := (parser.Modelfile{Commands: []parser.Command{command}}).CreateRequest(dir); err != nil {
				return nil, fmt.Errorf("%s: %w", command, err)
			}
			rest.Commands = append(rest.Commands, command)
		}
	}
	if from != "" && len(out.files) > 0 {
		return nil, fmt.Errorf("FROM names both a model (%s) and local files; one of them is too many", from)
	}
	if out.request, err = rest.CreateRequest(dir); err != nil {
		return nil, err
	}
	out.request.From = from
	return out, nil
}

func merge(into, files map[string]string) error {
	for name, path := range files {
		if other, ok := into[name]; ok && other != path {
			return fmt.Errorf("%s and %s would both be %s in the model", other, path, name)
		}
		into[name] = path
	}
	return nil
}

// looksLikePath tells a path that is missing from the name of a model.
func looksLikePath(arg string) bool {
	return arg == "." || arg == ".." || strings.HasPrefix(arg, "./") || strings.HasPrefix(arg, "../") ||
		strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, "~")
}

// localFiles lists what a path in a Modelfile stands for: one file, or the model files of a directory.
func localFiles(arg, dir string, adapter bool) (map[string]string, error) {
	file, err := expandPath(arg, dir)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return modelFiles(file, adapter)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is neither a file nor a directory", file)
	case pickled(file):
		return nil, errPickle
	}
	return map[string]string{filepath.Base(file): file}, nil
}

func expandPath(path, dir string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "~"); ok {
		name, rest, _ := strings.Cut(rest, "/")
		home, err := homeOf(name)
		if err != nil {
			return "", err
		}
		return filepath.Join(home, rest), nil
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return filepath.Abs(path)
}

func homeOf(name string) (string, error) {
	if name == "" {
		return os.UserHomeDir()
	}
	u, err := user.Lookup(name)
	if err != nil {
		return "", err
	}
	return u.HomeDir, nil
}

// adapterFiles are what a LoRA adapter consists of.
var adapterFiles = []string{"adapter_config.json", "adapters.safetensors", "adapter_model.safetensors"}

var errPickle = errors.New("weights in PyTorch's pickle format can run code when they are read and are refused;" +
	" convert the model to safetensors, for example with mlx_lm.convert")

// pickled tells the formats of weights that are refused.
func pickled(path string) bool {
	return slices.Contains([]string{".bin", ".pt", ".pth", ".pkl", ".ckpt"}, filepath.Ext(path))
}

// modelFiles lists the files of dir that make a model, or an adapter, by their path relative to dir.
func modelFiles(dir string, adapter bool) (map[string]string, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	offered, err := listFiles(root)
	if err != nil {
		return nil, err
	}
	names, err := selectFiles(offered, adapter)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	files := make(map[string]string, len(names))
	for _, name := range names {
		if files[name], err = insideModel(root, name); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// listFiles lists what is in root and in the directories directly below; models lie no deeper.
func listFiles(root string) (names []string, err error) {
	err = fs.WalkDir(os.DirFS(root), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !entry.IsDir():
			names = append(names, name)
		case name != "." && (strings.HasPrefix(entry.Name(), ".") || strings.Contains(name, "/")):
			return fs.SkipDir
		}
		return nil
	})
	return names, err
}

func selectFiles(offered []string, adapter bool) ([]string, error) {
	if adapter {
		names := slices.DeleteFunc(slices.Clone(offered), func(name string) bool { return !slices.Contains(adapterFiles, name) })
		if len(names) < 2 {
			return nil, errors.New("no adapter here; it would be adapter_config.json and adapters.safetensors")
		}
		return names, nil
	}
	names := mlxmodel.Select(offered).Files
	if mlxmodel.IsModel(names) {
		return names, nil
	}
	isGGUF := func(name string) bool { return path.Ext(name) == ".gguf" && !strings.Contains(name, "/") }
	if gguf := slices.DeleteFunc(slices.Clone(offered), func(name string) bool { return !isGGUF(name) }); len(gguf) > 0 {
		return gguf, nil
	}
	if slices.ContainsFunc(offered, pickled) {
		return nil, errPickle
	}
	return nil, errors.New("no model here; it would be config.json with model*.safetensors, or a .gguf file")
}

// insideModel follows links and refuses one that leaves the model's directory: a model from somewhere
// else must not draw in this user's files. Snapshots in a Hugging Face cache consist of links
// into the blobs directory two levels up, which belongs to the same model.
func insideModel(root, name string) (string, error) {
	path, err := filepath.EvalSymlinks(filepath.Join(root, name))
	if err != nil {
		return "", err
	}
	allowed := []string{root}
	if snapshots := filepath.Dir(root); filepath.Base(snapshots) == "snapshots" {
		allowed = append(allowed, filepath.Join(filepath.Dir(snapshots), "blobs"))
	}
	for _, dir := range allowed {
		if rel, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(rel) {
			info, err := os.Stat(path)
			if err != nil {
				return "", err
			}
			if !info.Mode().IsRegular() {
				return "", fmt.Errorf("%s is not a regular file", name)
			}
			return path, nil
		}
	}
	return "", fmt.Errorf("insecure path: %s is a link that leaves the model's directory", name)
}
