package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
)

// manual makes every answer a stream that the test feeds; streams are handed out as requests come.
func (b *bed) manual() chan *schedtest.Stream {
	streams := make(chan *schedtest.Stream, 16)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = func(ctx context.Context, _ *runnerpb.GenerateRequest) (sched.Stream, error) {
		s := schedtest.NewStream(ctx, 16)
		streams <- s
		return s, nil
	}
	return streams
}

const hi = `{"model": "m", "messages": [{"role": "user", "content": "hi"}]}`

func readChunk(t *testing.T, r *bufio.Reader) api.ChatResponse {
	t.Helper()
	line, err := r.ReadBytes('\n')
	if err != nil {
		t.Fatalf("reading a chunk: %v", err)
	}
	var c api.ChatResponse
	if err := json.Unmarshal(line, &c); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	return c
}

// Each event is on its way to the client before the next one exists, and streams do not wait for each other.
func TestStreamsInterleaveWithoutDelay(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	streams := b.manual()
	type client struct {
		stream *schedtest.Stream
		body   *bufio.Reader
	}
	var clients []client
	for range 2 {
		got := make(chan *http.Response)
		go func() { got <- b.open(context.Background(), "/api/chat", hi) }()
		s := <-streams
		s.Send(schedtest.Content("0"))
		clients = append(clients, client{s, bufio.NewReader((<-got).Body)})
	}
	for _, c := range clients {
		readChunk(t, c.body)
	}
	for i := range 5 {
		for j, c := range clients {
			want := fmt.Sprint(i, j)
			c.stream.Send(schedtest.Content(want))
			if got := readChunk(t, c.body).Message.Content; got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	}
	for _, c := range clients {
		c.stream.Send(schedtest.Stop())
		if !readChunk(t, c.body).Done {
			t.Error("not done")
		}
	}
}

// A client that goes away ends its request in the runner and gives its lease back, and the other stream goes on.
func TestDisconnectCancels(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	streams := b.manual()
	stay := make(chan *http.Response)
	go func() { stay <- b.open(context.Background(), "/api/chat", hi) }()
	other := <-streams
	for _, phase := range []string{"prefill", "decode"} {
		ctx, leave := context.WithCancel(context.Background())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			req, err := http.NewRequestWithContext(ctx, "POST", b.http.URL+"/api/chat", strings.NewReader(hi))
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}()
		s := <-streams
		if phase == "decode" {
			s.Send(schedtest.Content("x"))
		}
		until(t, "both hold a lease", func() bool { l := b.sched.Loaded(t.Context()); return len(l) == 1 && l[0].Leases == 2 })
		leave()
		select {
		case <-s.Closed():
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: the request was not ended", phase)
		}
		until(t, "the lease is back", func() bool { return b.sched.Loaded(t.Context())[0].Leases == 1 })
		<-gone
	}
	other.Send(schedtest.Content("still here"))
	body := bufio.NewReader((<-stay).Body)
	if got := readChunk(t, body).Message.Content; got != "still here" {
		t.Errorf("got %q", got)
	}
	other.Send(schedtest.Stop())
	readChunk(t, body)
}

// The runner dies: what runs fails with its reason, the next request has a new runner.
func TestRunnerDeath(t *testing.T) {
	b := newBed(t)
	b.create("m", nil)
	streams := b.manual()
	got := make(chan *http.Response)
	go func() { got <- b.open(context.Background(), "/api/chat", hi) }()
	s := <-streams
	s.Send(schedtest.Content("partial"))
	body := bufio.NewReader((<-got).Body)
	readChunk(t, body)
	b.starter.Started()[0].Crash(errors.New("signal: killed"))
	s.Break(errdefs.New(errdefs.ErrUnavailable, "the runner ended: signal: killed"))
	line, err := body.ReadString('\n')
	if want := "{\"error\":\"the runner ended: signal: killed\"}\n"; err != nil || line != want {
		t.Errorf("got %q, %v", line, err)
	}
	go func() { (<-streams).Send(schedtest.Stop()) }()
	b.expect("/api/chat", hi, 200, "")
	if n := len(b.starter.Started()); n != 2 {
		t.Errorf("%d runners were started", n)
	}
}

// A request that meets a runner which has just died, before anybody has noticed, is served by a new one.
func TestRequestMeetsDeadRunner(t *testing.T) {
	for _, path := range []string{"/api/chat", "/api/generate", "/api/embed"} {
		b := newBed(t)
		b.create("m", nil)
		onStart := b.starter.OnStart
		dead := errdefs.New(errdefs.ErrUnavailable, "it is dead")
		b.starter.OnStart = func(r *schedtest.Runner) {
			onStart(r)
			r.OnEmbed = func(*runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
				return &runnerpb.EmbedResponse{Embeddings: []*runnerpb.Embedding{{Values: []float32{1}}}}, nil
			}
			if len(b.starter.Started()) > 0 {
				return
			}
			r.OnGenerate = func(context.Context, *runnerpb.GenerateRequest) (sched.Stream, error) {
				r.Crash(errors.New("signal: killed"))
				return nil, dead
			}
			r.OnEmbed = func(*runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
				r.Crash(errors.New("signal: killed"))
				return nil, dead
			}
		}
		b.expect(path, `{"model": "m", "prompt": "x", "input": "x", "messages": [{"role": "user", "content": "x"}]}`, 200, "")
		if n := len(b.starter.Started()); n != 2 {
			t.Errorf("%s: %d runners were started", path, n)
		}
	}
}

func TestQueueFullOverHTTP(t *testing.T) {
	b := newBed(t, func(_ *Params, p *sched.Params) { p.MaxLoaded, p.MaxQueue = 1, 1 })
	b.create("m", nil)
	b.createFrom("n", plainModel(), nil)
	b.createFrom("e", embeddingModel(), nil)
	streams := b.manual()
	first := make(chan *http.Response)
	go func() { first <- b.open(context.Background(), "/api/chat", hi) }()
	s := <-streams
	s.Send(schedtest.Content("x"))
	// Whichever of the two comes second is refused at once, and the other waits.
	others := make(chan reply, 2)
	for _, model := range []string{"n", "e"} {
		go func() { others <- b.post("/api/embed", `{"model": "`+model+`"}`) }()
	}
	if r := <-others; r.status != 503 || r.body != `{"error":"server busy, please try again.  maximum pending requests exceeded"}` {
		t.Errorf("got %d %s", r.status, r.body)
	}
	s.Send(schedtest.Stop())
	_ = (<-first).Body.Close()
	if r := <-others; r.status != 200 {
		t.Errorf("the waiting request: %d %s", r.status, r.body)
	}
}

// serve runs a server on a listener of its own and returns its URL, what ends it, and its result.
func serve(t *testing.T, b *bed) (url string, stop context.CancelFunc, done chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done = make(chan error, 1)
	go func() { done <- b.server.Serve(ctx, ln) }()
	return "http://" + ln.Addr().String(), cancel, done
}

func TestServeDrains(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) { p.DrainTimeout = 5 * time.Second })
	b.create("m", nil)
	streams := b.manual()
	url, stop, done := serve(t, b)
	got := make(chan string)
	go func() {
		resp, err := http.Post(url+"/api/chat", "", strings.NewReader(hi))
		if err != nil {
			got <- err.Error()
			return
		}
		body, _ := readAll(resp)
		got <- body
	}()
	s := <-streams
	s.Send(schedtest.Content("a"))
	stop()
	until(t, "it stops listening", func() bool {
		_, err := http.Get(url + "/")
		return err != nil
	})
	if !b.starter.Started()[0].Alive() {
		t.Fatal("the runner was stopped before the drain")
	}
	s.Send(schedtest.Content("b"))
	s.Send(schedtest.Stop())
	if body := <-got; !strings.Contains(body, `"done":true`) {
		t.Errorf("the running request: %s", body)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if b.starter.Started()[0].Alive() {
		t.Error("a runner is left")
	}
}

func TestServeEndsWhatOutlastsTheDrain(t *testing.T) {
	b := newBed(t, func(p *Params, _ *sched.Params) { p.DrainTimeout = 50 * time.Millisecond })
	b.create("m", nil)
	streams := b.manual()
	url, stop, done := serve(t, b)
	var wg sync.WaitGroup
	bodies := make([]string, 2)
	for i := range bodies {
		wg.Go(func() {
			resp, err := http.Post(url+"/api/chat", "", strings.NewReader(hi))
			if err != nil {
				bodies[i] = err.Error()
				return
			}
			bodies[i], _ = readAll(resp)
		})
		s := <-streams
		if i == 1 {
			s.Send(schedtest.Content("begun"))
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	wg.Wait()
	if bodies[0] != `{"error":"the server is shutting down"}` || !strings.HasSuffix(bodies[1], "{\"error\":\"the server is shutting down\"}\n") {
		t.Errorf("bodies: %q", bodies)
	}
	if b.starter.Started()[0].Alive() {
		t.Error("a runner is left")
	}
}

func TestServeTellsThatItCannotListen(t *testing.T) {
	b := newBed(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := b.server.Serve(t.Context(), ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
