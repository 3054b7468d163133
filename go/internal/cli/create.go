package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/spf13/cobra"

	"github.com/ollmlx/ollmlx/go/internal/store"
)

// defaultModelfile is read if no file is named. If it does not exist, the directory itself is the model.
const defaultModelfile = "Modelfile"

func (a *app) createCommand() *cobra.Command {
	var file, quantize string
	cmd := &cobra.Command{
		Use:   "create MODEL",
		Short: "Create a model from a Modelfile",
		Long: "Create a model from a Modelfile, a model directory (FROM ./dir) or another model.\n\n" +
			"Without --file, the file Modelfile is read; if there is none, the current directory is the model.\n\n" +
			"--quantize packs the weights of a model that is not quantized into fewer bits:\n  " + store.SchemeNames + ".\n" +
			"Names of GGUF types, such as q4_K_M or q8_0, choose what is nearest to them.",
		Example: "  ollmlx create mine                          # Modelfile in this directory\n" +
			"  ollmlx create mine -f ./Modelfile -q int4   # and quantized to 4 bits",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// Mistakes in the Modelfile are told before a server is needed.
			recipe, err := openModelfile(a.in, file, cmd.Flags().Changed("file"))
			if err != nil {
				return err
			}
			for _, warning := range recipe.warnings {
				fmt.Fprintln(a.err, "Warning:", warning)
			}
			return a.clientCommand(func(ctx context.Context, client *api.Client, args []string) error {
				recipe.request.Model = args[0]
				recipe.request.Quantize = quantize
				return a.create(ctx, client, recipe)
			})(cmd, args)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", defaultModelfile, `name of the Modelfile ("-" for standard input)`)
	cmd.Flags().StringVarP(&quantize, "quantize", "q", "", "quantize the weights (e.g. int4, int8, mxfp4, q4_K_M)")
	return cmd
}

func openModelfile(stdin io.Reader, file string, named bool) (*recipe, error) {
	if file == "-" {
		return readModelfile(stdin, ".")
	}
	f, err := os.Open(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
		return readModelfile(strings.NewReader("FROM .\n"), ".")
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("specified Modelfile %q wasn't found", file)
	case err != nil:
		return nil, err
	}
	defer f.Close()
	recipe, err := readModelfile(f, filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return recipe, nil
}

// create brings the recipe's files to the server, which then makes the model of them.
func (a *app) create(ctx context.Context, client *api.Client, r *recipe) error {
	p := a.newProgress()
	defer p.stop()
	u := uploader{app: a, client: client, progress: p}
	var err error
	if r.request.Files, err = u.upload(ctx, r.files); err != nil {
		return err
	}
	if r.request.Adapters, err = u.upload(ctx, r.adapters); err != nil {
		return err
	}
	return client.Create(ctx, r.request, func(m api.ProgressResponse) error {
		p.update(m, m.Status)
		return nil
	})
}

// uploader brings local files to the server as blobs.
type uploader struct {
	*app
	client   *api.Client
	progress *reporter
}

// upload returns the digests of files, each of which the server has afterwards.
func (u *uploader) upload(ctx context.Context, files map[string]string) (map[string]string, error) {
	if len(files) == 0 {
		return nil, nil
	}
	digests := make(map[string]string, len(files))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		digest, err := u.uploadFile(ctx, name, files[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		digests[name] = digest
	}
	return digests, nil
}

func (u *uploader) uploadFile(ctx context.Context, name, path string) (digest string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, u.counted(ctx, f, "hashing "+name, info.Size())); err != nil {
		return "", err
	}
	digest = fmt.Sprintf("sha256:%x", hash.Sum(nil))
	exists, err := u.hasBlob(ctx, digest)
	if err != nil || exists {
		return digest, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return digest, u.client.CreateBlob(ctx, digest, u.counted(ctx, f, "copying "+name, info.Size()))
}

func (u *uploader) hasBlob(ctx context.Context, digest string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, u.config.Host.URL().JoinPath("/api/blobs", digest).String(), nil)
	if err != nil {
		return false, err
	}
	resp, err := u.http().Do(req)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("asking the server for blob %s: %s", digest, resp.Status)
}

// counted shows how much of r has been read, and ends with ctx.
func (u *uploader) counted(ctx context.Context, r io.Reader, label string, size int64) io.Reader {
	return &countingReader{ctx: ctx, r: r, count: func(n int64) { u.progress.bar(label, label, size, n) }}
}

type countingReader struct {
	ctx   context.Context
	r     io.Reader
	n     int64
	count func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.count(c.n)
	return n, err
}
