package registry

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// Site is a place that serves files by HTTP under addresses that are known beforehand, such as a model hub. What holds
// for registries holds for it: the token goes to its own host only, redirects lead to no private address unless the
// site has one itself, and transfers are repeated, taken up again and shared.
type Site struct{ repository *repository }

// Site returns the site at base. Plain http is spoken only with a base that says so. token may be empty.
func (c *Client) Site(base *url.URL, token string) *Site {
	return &Site{&repository{client: c, base: base, insecure: base.Scheme == "http", fixed: true, token: token}}
}

// Read gets a small file whole. One of more than most bytes is an error.
func (s *Site) Read(ctx context.Context, address *url.URL, most int64) (content []byte, err error) {
	err = s.repository.client.retry(ctx, s.repository.client.params.Retries, func() (bool, error) {
		content, err = s.read(ctx, address, most)
		return false, err
	})
	return content, err
}

func (s *Site) read(ctx context.Context, address *url.URL, most int64) ([]byte, error) {
	r := s.repository
	release, err := r.client.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, _, stop := watch(ctx, r.client.params.StallTimeout)
	defer stop()
	resp, err := r.do(ctx, call{method: http.MethodGet, url: address})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case err != nil:
		return nil, r.failed(ctx, r.base.Host, err)
	case int64(len(content)) > most:
		return nil, errdefs.New(errdefs.ErrInvalid, "%s sent more than the %d bytes that it announced", r.base.Host, most)
	}
	return content, nil
}

// Fetch brings the layers of in that are missing, each from its address; all are verified when it returns. Progress names
// the files, and tells of the model, called name, as a whole.
func (s *Site) Fetch(ctx context.Context, in *store.Incoming, name string, address func(digest string) *url.URL, progress func(api.ProgressResponse)) error {
	r := s.repository
	if err := r.client.checkSpace(in); err != nil {
		return err
	}
	layers := in.Layers()
	rep := newReporter("pulling", layers, false, progress)
	rep.files = &whole{name: name, digest: in.Digest()}
	for _, l := range layers {
		rep.files.size += l.Size
	}
	from := &repository{client: r.client, base: r.base, insecure: r.insecure, fixed: true, token: r.token, locate: address}
	return r.client.pullLayers(ctx, from, in, rep)
}
