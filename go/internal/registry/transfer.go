package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// errNoRanges means that a registry sends blobs only whole.
var errNoRanges = errors.New("the registry does not send parts of blobs")

// partsAtOnce is how many parts of a blob are worked on at once; how many have a connection is for Client.slots.
const partsAtOnce = 16

// copyBuffer is how much is read at once.
const copyBuffer = 128 << 10

// transfer is the download of a blob, shared by all pulls that want it. The last one to leave ends it.
type transfer struct {
	repository *repository
	layer      store.Layer
	cancel     context.CancelFunc
	refs       int // guarded by Client.mu

	completed atomic.Int64
	// received is closed when all bytes are here, done when err is set and nothing runs any more.
	received, done chan struct{}
	err            error
}

// join takes part in the transfer of a blob, which is begun if it is not under way; first tells that.
func (c *Client) join(ctx context.Context, r *repository, l store.Layer) (t *transfer, first bool, err error) {
	for {
		c.mu.Lock()
		t := c.transfers[l.Digest]
		switch {
		case t == nil:
			t := c.begin(ctx, r, l)
			c.mu.Unlock()
			return t, true, nil
		case t.refs > 0 && t.layer.Size == l.Size:
			t.refs++
			c.mu.Unlock()
			return t, false, nil
		}
		// It is ending, or it was asked for with another size, of which at most one is right.
		c.mu.Unlock()
		select {
		case <-t.done:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
}

// begin starts a transfer. It outlives the pull that began it if others have joined. The caller has mu.
func (c *Client) begin(ctx context.Context, r *repository, l store.Layer) *transfer {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t := &transfer{repository: r, layer: l, cancel: cancel, refs: 1, received: make(chan struct{}), done: make(chan struct{})}
	t.completed.Store(c.params.Store.Received(l))
	c.transfers[l.Digest] = t
	go func() {
		err := t.run(ctx)
		cancel()
		c.mu.Lock()
		delete(c.transfers, l.Digest)
		t.err = err
		t.refs = 0
		close(t.done)
		c.mu.Unlock()
	}()
	return t
}

// leave ends taking part. Whoever is last waits until what has come is put by.
func (c *Client) leave(t *transfer) {
	c.mu.Lock()
	t.refs--
	last := t.refs == 0
	c.mu.Unlock()
	if last {
		t.cancel()
		<-t.done
	}
}

func (t *transfer) run(ctx context.Context) (err error) {
	c := t.repository.client
	p, err := c.params.Store.OpenPartial(t.layer.Digest, t.layer.Size, c.partSize(t.layer.Size))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	err = t.ranges(ctx, p)
	if errors.Is(err, errNoRanges) {
		err = t.whole(ctx, p)
	}
	if err != nil {
		return err
	}
	close(t.received)
	return p.Finish(ctx)
}

// ranges brings what is missing of each part.
func (t *transfer) ranges(ctx context.Context, p *store.Partial) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(partsAtOnce)
	for i, part := range p.Parts() {
		if part.Done == part.Size {
			continue
		}
		g.Go(func() error {
			return t.repository.client.retry(ctx, t.repository.client.params.Retries, func() (bool, error) {
				return t.fetch(ctx, p, i, true)
			})
		})
	}
	return g.Wait()
}

// whole brings all of the blob from a registry that does not send parts: each attempt begins at the beginning.
func (t *transfer) whole(ctx context.Context, p *store.Partial) error {
	return t.repository.client.retry(ctx, t.repository.client.params.Retries, func() (bool, error) {
		if err := p.Restart(); err != nil {
			return false, err
		}
		t.completed.Store(0)
		_, err := t.fetch(ctx, p, 0, false)
		return false, err
	})
}

// fetch asks once for what is missing of a part, and reports whether anything came.
func (t *transfer) fetch(ctx context.Context, p *store.Partial, i int, ranged bool) (progressed bool, err error) {
	part := p.Parts()[i]
	release, err := t.repository.client.slot(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	ctx, touch, stop := watch(ctx, t.repository.client.params.StallTimeout)
	defer stop()
	from, to := part.Offset+part.Done, part.Offset+part.Size-1
	header := http.Header{}
	if ranged {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to))
	}
	resp, err := t.repository.do(ctx, call{method: http.MethodGet, url: t.repository.blob(t.layer.Digest), header: header})
	if err != nil {
		return false, t.explain(err)
	}
	defer resp.Body.Close()
	if err := t.checkAnswer(resp, from, to); err != nil {
		return false, err
	}
	n, err := t.read(ctx, resp.Body, p, i, to+1-from, touch)
	return n > 0, err
}

// explain names the blob in errors that are final.
func (t *transfer) explain(err error) error {
	if !t.repository.fixed && hasStatus(err, http.StatusNotFound, http.StatusRequestedRangeNotSatisfiable) {
		return errdefs.New(errdefs.ErrUnavailable, "the registry has no blob %s of %d bytes, which the manifest names: %w", t.layer.Digest, t.layer.Size, err)
	}
	return err
}

// checkAnswer refuses an answer that is not what was asked for.
func (t *transfer) checkAnswer(resp *http.Response, from, to int64) error {
	switch resp.StatusCode {
	case http.StatusOK:
		if from != 0 || to != t.layer.Size-1 {
			return errNoRanges
		}
		if resp.ContentLength >= 0 && resp.ContentLength != t.layer.Size {
			return t.wrongSize(resp.ContentLength)
		}
		return nil
	case http.StatusPartialContent:
		var first, last, total int64
		r := resp.Header.Get("Content-Range")
		if n, _ := fmt.Sscanf(r, "bytes %d-%d/%d", &first, &last, &total); n < 2 || first != from || last > to {
			return errdefs.New(errdefs.ErrInvalid, "the registry sent the range %.50q of blob %s instead of %d-%d", r, t.layer.Digest, from, to)
		}
		if !strings.HasSuffix(r, "/*") && total != t.layer.Size {
			return t.wrongSize(total)
		}
		return nil
	}
	return errdefs.New(errdefs.ErrInvalid, "the registry answered %d to a request for a blob", resp.StatusCode)
}

func (t *transfer) wrongSize(got int64) error {
	return errdefs.New(errdefs.ErrInvalid, "blob %s has %d bytes at the registry and %d by the manifest", t.layer.Digest, got, t.layer.Size)
}

// read takes n bytes of a part, and not one more.
func (t *transfer) read(ctx context.Context, body io.Reader, p *store.Partial, i int, n int64, touch func()) (got int64, err error) {
	buf := make([]byte, min(copyBuffer, n))
	for got < n {
		k, err := body.Read(buf[:min(int64(len(buf)), n-got)])
		if k > 0 {
			touch()
			if err := p.Write(i, buf[:k]); err != nil {
				return got, err
			}
			got += int64(k)
			t.completed.Add(int64(k))
		}
		switch {
		case got == n:
			return got, nil
		case errors.Is(err, io.EOF):
			return got, io.ErrUnexpectedEOF
		case err != nil:
			return got, t.repository.failed(ctx, t.repository.base.Host, err)
		}
	}
	return got, nil
}
