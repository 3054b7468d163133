package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/ollama/ollama/format"
	"github.com/spf13/cobra"
)

// Names that runners give to what they keep in the directory of prefix caches: a directory for each model, files in it.
var (
	prefixDirName  = regexp.MustCompile(`^[0-9a-f]{32}$`)
	prefixFileName = regexp.MustCompile(`^([0-9a-f]{40}\.kv\.safetensors|writing-[0-9]+-[0-9a-f]{8})$`)
)

func (a *app) cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Show or clear what is kept on disk of conversations",
		Long: "Show what runners keep on disk of what they computed of conversations (prefix caches), so that these go on\n" +
			"quickly after an unload or a restart. It is kept where OLLMLX_PREFIX_CACHE gives it space, on this machine.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.showCache() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "clear",
		Short: "Remove the prefix caches of all models from disk",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.clearCache() },
	})
	return cmd
}

// cachedFiles are the prefix caches on disk, and those that are being written.
func (a *app) cachedFiles() (paths []string, size int64, err error) {
	root := a.config.PrefixCacheDir()
	if root == "" {
		return nil, 0, errors.New("the system names no cache directory; set OLLMLX_CACHE")
	}
	dirs, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	for _, dir := range dirs {
		if !dir.IsDir() || !prefixDirName.MatchString(dir.Name()) {
			continue
		}
		files, err := os.ReadDir(filepath.Join(root, dir.Name()))
		if err != nil {
			return nil, 0, err
		}
		for _, file := range files {
			info, err := file.Info()
			if err != nil || !info.Mode().IsRegular() || !prefixFileName.MatchString(file.Name()) {
				continue // gone meanwhile, or not ours
			}
			paths = append(paths, filepath.Join(root, dir.Name(), file.Name()))
			size += info.Size()
		}
	}
	return paths, size, nil
}

func (a *app) showCache() error {
	paths, size, err := a.cachedFiles()
	if err != nil {
		return err
	}
	bound := "off; set OLLMLX_PREFIX_CACHE, for example to 20GB, where the server runs"
	if a.config.PrefixCacheBytes > 0 {
		bound = format.HumanBytes(a.config.PrefixCacheBytes)
	}
	return writeTable(a.out, "", [][]string{
		{"directory", a.config.PrefixCacheDir()},
		{"prefixes", fmt.Sprint(len(paths))},
		{"size", format.HumanBytes(size)},
		{"limit", bound},
	})
}

func (a *app) clearCache() error {
	paths, size, err := a.cachedFiles()
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// It goes with its last file; whatever else is in it keeps it.
		_ = os.Remove(filepath.Dir(path))
	}
	fmt.Fprintf(a.out, "removed %d prefixes, %s\n", len(paths), format.HumanBytes(size))
	return nil
}
