package server

import (
	"context"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

func TestLoadProgress(t *testing.T) {
	weights := func(done uint64) *runnerpb.LoadProgress {
		return &runnerpb.LoadProgress{Stage: runnerpb.LoadProgress_STAGE_WEIGHTS, BytesDone: done, BytesTotal: 300}
	}
	for _, c := range []struct {
		name   string
		asks   bool
		fails  bool
		status int
		want   []string
	}{
		{name: "asked", asks: true, status: 200, want: []string{"tokenizer 0/0", "weights 100/300"}},
		// What has been told does not decide on the status.
		{name: "failed", asks: true, fails: true, status: 500, want: []string{"tokenizer 0/0", "weights 100/300"}},
		{name: "not asked", status: 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			b.create("m", nil)
			heard := make(chan string)
			b.starter.OnLoad = func(_ context.Context, _ *store.Model, progress func(*runnerpb.LoadProgress)) error {
				for _, p := range []*runnerpb.LoadProgress{{Stage: runnerpb.LoadProgress_STAGE_TOKENIZER}, weights(100)} {
					progress(p)
					if c.asks {
						// A slow reader sees only the latest, so each is awaited.
						<-heard
					}
				}
				if c.fails {
					return errdefs.New(errdefs.ErrInternal, "broken weights")
				}
				return nil
			}
			var got []string
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					got = append(got, h.Get(LoadHeader))
					heard <- h.Get(LoadHeader)
					return nil
				},
			})
			req, err := http.NewRequestWithContext(ctx, "POST", b.http.URL+"/api/generate", strings.NewReader(`{"model": "m", "prompt": "hi"}`))
			if err != nil {
				t.Fatal(err)
			}
			if c.asks {
				req.Header.Set(LoadHeader, "progress")
			}
			resp, err := b.http.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readAll(resp); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || resp.Header.Get(LoadHeader) != "" || !slices.Equal(got, c.want) {
				t.Errorf("got %d, %q told, %q in the response; want %d, %q", resp.StatusCode, got, resp.Header.Get(LoadHeader), c.status, c.want)
			}
		})
	}
}
