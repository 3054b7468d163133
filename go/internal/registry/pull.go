package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"
	"golang.org/x/sync/errgroup"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

const (
	mediaManifest = "application/vnd.docker.distribution.manifest.v2+json"

	// maxManifest bounds a manifest; models with a layer for each tensor have large ones.
	maxManifest = 16 << 20
	// manifestRetries is less than for blobs: a user waits, and may have mistyped the host.
	manifestRetries = 2
	// layersAtOnce is how many layers of a model are worked on at once: enough to hide the latency of small ones.
	layersAtOnce = 4
	// reportInterval is how often progress is told.
	reportInterval = 100 * time.Millisecond
)

// What progress says; the words are Ollama's.
const (
	statusManifest  = "pulling manifest"
	statusVerifying = "verifying sha256 digest"
	statusWriting   = "writing manifest"
	statusRemoving  = "removing unused layers"
	statusSuccess   = "success"
)

// Pull implements Puller.
func (c *Client) Pull(ctx context.Context, n model.Name, o Options, progress func(api.ProgressResponse)) error {
	r, err := c.repository(n, o, false)
	if err != nil {
		return err
	}
	progress(api.ProgressResponse{Status: statusManifest})
	raw, err := r.manifest(ctx)
	if err != nil {
		return manifestError("pull", ctx, err)
	}
	in, err := c.params.Store.Receive(n, raw)
	if err != nil {
		return manifestError("pull", ctx, err)
	}
	defer in.Close()
	if err := c.checkSpace(in); err != nil {
		return err
	}
	if err := c.checkVersion(ctx, r, in); err != nil {
		return err
	}
	if err := c.pullLayers(ctx, r, in, newReporter("pulling", in.Layers(), in.Tensors(), progress)); err != nil {
		return err
	}
	progress(api.ProgressResponse{Status: statusWriting})
	released, err := in.Commit()
	if err != nil {
		return err
	}
	if released {
		progress(api.ProgressResponse{Status: statusRemoving})
	}
	progress(api.ProgressResponse{Status: statusSuccess})
	return nil
}

// manifestError gives an error of getting or sending a manifest Ollama's words.
func manifestError(doing string, ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return err
	case hasStatus(err, http.StatusNotFound):
		return errdefs.New(errdefs.ErrNotFound, "%s model manifest: file does not exist", doing)
	}
	return fmt.Errorf("%s model manifest: %w", doing, err)
}

// manifest gets the repository's manifest.
func (r *repository) manifest(ctx context.Context) (raw []byte, err error) {
	err = r.client.retry(ctx, manifestRetries, func() (bool, error) {
		raw, err = r.fetchManifest(ctx)
		return false, err
	})
	return raw, err
}

func (r *repository) fetchManifest(ctx context.Context) ([]byte, error) {
	ctx, touch, stop := watch(ctx, r.client.params.StallTimeout)
	defer stop()
	resp, err := r.do(ctx, call{
		method: http.MethodGet, url: r.url("manifests", r.tag), header: http.Header{"Accept": {mediaManifest}},
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	touch()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, r.failed(ctx, r.base.Host, err)
	}
	if len(raw) > maxManifest {
		return nil, errdefs.New(errdefs.ErrInvalid, "the manifest is larger than %d MiB", maxManifest>>20)
	}
	if kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); strings.Contains(kind, "manifest.list") || strings.Contains(kind, "image.index") {
		return nil, errdefs.New(errdefs.ErrInvalid, "%s is an index of images and no model", r.path)
	}
	if want := resp.Header.Get("Docker-Content-Digest"); want != "" {
		sum := sha256.Sum256(raw)
		if got := "sha256:" + hex.EncodeToString(sum[:]); got != want {
			// Most likely cut or changed on the way, and right the next time.
			return nil, fmt.Errorf("the manifest does not match its digest: %w", io.ErrUnexpectedEOF)
		}
	}
	return raw, nil
}

func (c *Client) checkSpace(in *store.Incoming) error {
	missing, err := in.Missing()
	if err != nil {
		return err
	}
	return store.CheckSpace(missing, "for what has still to be downloaded", c.params.FreeSpace)
}

// maxConfig is the size of a configuration beyond which it is brought with the other layers.
const maxConfig = 1 << 20

// checkVersion brings the configuration first: a model that this server could not run is refused before the rest comes.
func (c *Client) checkVersion(ctx context.Context, r *repository, in *store.Incoming) error {
	config, ok := in.Config()
	if !ok || config.Size > maxConfig {
		return nil
	}
	quiet := newReporter("pulling", []store.Layer{config}, false, func(api.ProgressResponse) {})
	if err := c.pullLayer(ctx, r, in, config, quiet, func() {}); err != nil {
		return err
	}
	return in.CheckVersion()
}

// pullLayers brings what is missing. It returns when all of it is verified.
func (c *Client) pullLayers(ctx context.Context, r *repository, in *store.Incoming, rep *reporter) error {
	layers := in.Layers()
	g, gctx := errgroup.WithContext(ctx)
	all := make(chan struct{})
	var arrived atomic.Int64
	room := make(chan struct{}, layersAtOnce)
	for _, l := range layers {
		select {
		case room <- struct{}{}:
		case <-gctx.Done():
			return g.Wait()
		}
		g.Go(func() error {
			return c.pullLayer(gctx, r, in, l, rep, sync.OnceFunc(func() {
				<-room
				if arrived.Add(1) == int64(len(layers)) {
					close(all)
				}
			}))
		})
	}
	select {
	case <-all:
		rep.status(statusVerifying)
	case <-gctx.Done():
	}
	return g.Wait()
}

// pullLayer brings one layer. arrived is called when its last byte is here; it is verified when pullLayer returns.
func (c *Client) pullLayer(ctx context.Context, r *repository, in *store.Incoming, l store.Layer, rep *reporter, arrived func()) error {
	for {
		has, err := in.Has(l)
		if err != nil {
			return err
		}
		if has {
			rep.update(l, l.Size)
			arrived()
			return nil
		}
		t, first, err := c.join(ctx, r, l)
		if err != nil {
			return err
		}
		err = c.follow(ctx, t, l, rep, arrived)
		if err == nil {
			continue // and find it
		}
		// Another pull's registry failed; ours may not.
		if first || ctx.Err() != nil {
			return err
		}
	}
}

// follow tells of a transfer until it ends.
func (c *Client) follow(ctx context.Context, t *transfer, l store.Layer, rep *reporter, arrived func()) error {
	defer c.leave(t)
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	rep.update(l, t.completed.Load())
	received := t.received
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
			rep.update(l, t.completed.Load())
		case <-received:
			received = nil
			rep.update(l, l.Size)
			arrived()
		case <-t.done:
			if t.err != nil && errors.Is(t.err, context.Canceled) && ctx.Err() == nil {
				return errdefs.New(errdefs.ErrUnavailable, "the transfer of %s was given up", l.Digest)
			}
			return t.err
		}
	}
}

func shortDigest(digest string) string {
	digest = strings.TrimPrefix(digest, "sha256:")
	return digest[:min(12, len(digest))]
}
