package server

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/registry"
	"github.com/ollmlx/ollmlx/go/internal/sched"
)

// transferFunc stands in for a registry; the real ones are tested in package registry.
type transferFunc func(ctx context.Context, n model.Name, o registry.Options, progress func(api.ProgressResponse)) error

func (f transferFunc) Pull(ctx context.Context, n model.Name, o registry.Options, progress func(api.ProgressResponse)) error {
	return f(ctx, n, o, progress)
}

func (f transferFunc) Push(ctx context.Context, n model.Name, o registry.Options, progress func(api.ProgressResponse)) error {
	return f(ctx, n, o, progress)
}

func withTransfers(f transferFunc) setting {
	return func(p *Params, _ *sched.Params) { p.Puller, p.Pusher = f, f }
}

func TestTransferRoutes(t *testing.T) {
	var asked []string
	var insecure bool
	b := newBed(t, withTransfers(func(_ context.Context, n model.Name, o registry.Options, progress func(api.ProgressResponse)) error {
		asked = append(asked, modelname.Display(n))
		insecure = o.Insecure
		progress(api.ProgressResponse{Status: "working", Digest: "sha256:1", Total: 2, Completed: 1})
		progress(api.ProgressResponse{Status: "success"})
		return nil
	}))
	b.create("m", nil)
	for _, path := range []string{"/api/pull", "/api/push"} {
		want := `{"status":"working","digest":"sha256:1","total":2,"completed":1}` + "\n" + `{"status":"success"}` + "\n"
		if r := b.post(path, `{"name": "m", "insecure": true}`); r.status != 200 || r.body != want || !insecure {
			t.Errorf("%s: got %d %s, insecure %v", path, r.status, r.body, insecure)
		}
		if r := b.post(path, `{"model": "m", "stream": false}`); r.status != 200 || r.body != `{"status":"success"}` || insecure {
			t.Errorf("%s: got %d %s, insecure %v", path, r.status, r.body, insecure)
		}
	}
	if got := strings.Join(asked, " "); got != "m:latest m:latest m:latest m:latest" {
		t.Errorf("got %s", got)
	}
}

func TestTransferFailures(t *testing.T) {
	for _, kind := range []error{errdefs.ErrNotFound, errdefs.ErrInvalid, errdefs.ErrForbidden, errdefs.ErrPrecondition, nil} {
		b := newBed(t, withTransfers(func(_ context.Context, n model.Name, _ registry.Options, progress func(api.ProgressResponse)) error {
			progress(api.ProgressResponse{Status: "pulling manifest"})
			if kind == nil {
				return errors.New("pull model manifest: file does not exist")
			}
			return errdefs.New(kind, "pull model manifest: file does not exist")
		}))
		b.create("m", nil)
		for _, path := range []string{"/api/pull", "/api/push"} {
			want := `{"status":"pulling manifest"}` + "\n" + `{"error":"pull model manifest: file does not exist"}` + "\n"
			if r := b.post(path, `{"model": "m"}`); r.status != 200 || r.body != want {
				t.Errorf("%s: got %d %s", path, r.status, r.body)
			}
			want = `{"error":"pull model manifest: file does not exist"}`
			if r := b.post(path, `{"model": "m", "stream": false}`); r.status != 500 || r.body != want {
				t.Errorf("%s: got %d %s", path, r.status, r.body)
			}
		}
	}
}

func TestTransferRequests(t *testing.T) {
	b := newBed(t, withTransfers(func(context.Context, model.Name, registry.Options, func(api.ProgressResponse)) error {
		t.Error("a bad request got through")
		return nil
	}))
	for _, tc := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/api/pull", ``, 400, "missing request body"},
		{"/api/pull", `{}`, 400, "invalid model name"},
		{"/api/pull", `{"model": "../x"}`, 400, "invalid model name"},
		{"/api/push", ``, 400, "missing request body"},
		{"/api/push", `{}`, 400, "model is required"},
		{"/api/push", `{"model": "../x"}`, 400, "invalid model name"},
		{"/api/push", `{"model": "/etc/passwd"}`, 400, "invalid model name"}, // CVE-2024-39722
		{"/api/push", `{"model": "nope"}`, 404, "model 'nope' not found"},
	} {
		if r := b.post(tc.path, tc.body); r.status != tc.status || r.err() != tc.want {
			t.Errorf("%s %s: got %d %s", tc.path, tc.body, r.status, r.body)
		}
	}
}

// TestTransferEndsWithItsClient: a pull nobody waits for any more must not go on.
func TestTransferEndsWithItsClient(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	b := newBed(t, withTransfers(func(ctx context.Context, _ model.Name, _ registry.Options, progress func(api.ProgressResponse)) error {
		progress(api.ProgressResponse{Status: "pulling manifest"})
		close(begun)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	base, err := url.Parse(b.http.URL)
	if err != nil {
		t.Fatal(err)
	}
	client := api.NewClient(base, b.http.Client())
	// Its error says nothing: that client takes a connection that breaks between two lines for the end.
	_ = client.Pull(ctx, &api.PullRequest{Model: "m"}, func(api.ProgressResponse) error { return nil })
	<-ended
}

// TestCreateFromAModelElsewhere: a model that FROM names is pulled.
func TestCreateFromAModelElsewhere(t *testing.T) {
	var b *bed
	b = newBed(t, withTransfers(func(_ context.Context, n model.Name, _ registry.Options, progress func(api.ProgressResponse)) error {
		progress(api.ProgressResponse{Status: "pulling manifest"})
		src, err := modelname.Parse("m")
		if err != nil {
			return err
		}
		return b.store.Copy(src, n)
	}))
	b.create("m", nil)
	r := b.post("/api/create", `{"model": "new", "from": "example.com/org/base", "system": "x"}`)
	if r.status != 200 || !strings.HasPrefix(r.body, `{"status":"pulling manifest"}`) || !strings.HasSuffix(r.body, `{"status":"success"}`+"\n") {
		t.Errorf("got %d %s", r.status, r.body)
	}
}
