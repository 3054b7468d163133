package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"
	"golang.org/x/sync/errgroup"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

const (
	statusRetrieving = "retrieving manifest"
	statusPushing    = "pushing manifest"
)

// Push implements Pusher. The layers go first, those that the registry has are not sent, and the manifest goes last, byte
// for byte, so that the model has the same digest there.
func (c *Client) Push(ctx context.Context, n model.Name, o Options, progress func(api.ProgressResponse)) error {
	if n.Host == modelname.HubHost {
		return errdefs.New(errdefs.ErrUnsupported, "pushing to Hugging Face is not supported; use its own tools, for example \"hf upload\"")
	}
	r, err := c.repository(n, o, true)
	if err != nil {
		return err
	}
	out, err := c.params.Store.Send(n)
	if err != nil {
		return err
	}
	defer out.Close()
	progress(api.ProgressResponse{Status: statusRetrieving})
	if err := c.pushLayers(ctx, r, out, progress); err != nil {
		return err
	}
	progress(api.ProgressResponse{Status: statusPushing})
	if err := r.putManifest(ctx, out.Manifest); err != nil {
		return manifestError("push", ctx, err)
	}
	progress(api.ProgressResponse{Status: statusSuccess})
	return nil
}

func (c *Client) pushLayers(ctx context.Context, r *repository, out *store.Outgoing, progress func(api.ProgressResponse)) error {
	rep := newReporter("pushing", out.Layers, out.Tensors(), progress)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	for _, l := range out.Layers {
		g.Go(func() error {
			rep.update(l, 0)
			if err := r.pushLayer(ctx, out, l, rep); err != nil {
				return fmt.Errorf("pushing %s: %w", shortDigest(l.Digest), err)
			}
			rep.update(l, l.Size)
			return nil
		})
	}
	return g.Wait()
}

// pushLayer sends a layer, unless the registry has it or can take it from another of its repositories.
func (r *repository) pushLayer(ctx context.Context, out *store.Outgoing, l store.Layer, rep *reporter) error {
	has, err := r.hasBlob(ctx, l)
	if has || err != nil {
		return err
	}
	f, err := out.Open(l)
	if err != nil {
		return err
	}
	defer f.Close()
	u := &upload{repository: r, layer: l, content: f, report: func(n int64) { rep.update(l, n) }}
	return u.run(ctx)
}

// quick sends a call without much of a body, repeatedly if need be, and returns the answer without its body.
func (r *repository) quick(ctx context.Context, c call) (resp *http.Response, err error) {
	err = r.client.retry(ctx, r.client.params.Retries, func() (bool, error) {
		// A registry takes its time to check what it got.
		wctx, _, stop := watch(ctx, commitPatience*r.client.params.StallTimeout)
		defer stop()
		if resp, err = r.do(wctx, c); err != nil {
			return false, err
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody))
		return false, resp.Body.Close()
	})
	return resp, err
}

func (r *repository) hasBlob(ctx context.Context, l store.Layer) (bool, error) {
	resp, err := r.quick(ctx, call{method: http.MethodHead, url: r.url("blobs", l.Digest)})
	if hasStatus(err, http.StatusNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if resp.ContentLength >= 0 && resp.ContentLength != l.Size {
		return false, errdefs.New(errdefs.ErrUnavailable, "the registry has blob %s with %d bytes instead of %d", l.Digest, resp.ContentLength, l.Size)
	}
	return true, nil
}

func (r *repository) putManifest(ctx context.Context, raw []byte) error {
	_, err := r.quick(ctx, call{
		method: http.MethodPut, url: r.url("manifests", r.tag), header: http.Header{"Content-Type": {mediaManifest}},
		body: func() (io.Reader, error) { return bytes.NewReader(raw), nil }, size: int64(len(raw)),
	})
	var status *statusError
	if errors.As(err, &status) && status.code == http.StatusNotFound {
		// "file does not exist" would be about our own file.
		return errdefs.New(errdefs.ErrUnavailable, "%w", err)
	}
	return err
}
