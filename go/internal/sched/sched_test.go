package sched_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/sched/schedtest"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

func TestOneRunnerForAModel(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		b.OnLoad = func(context.Context, *store.Model, func(*runnerpb.LoadProgress)) error {
			time.Sleep(time.Second)
			return nil
		}
		var chs []chan outcome
		for range 10 {
			chs = append(chs, b.start(t.Context(), "a", nil))
		}
		var leases []*sched.Lease
		for _, ch := range chs {
			leases = append(leases, b.lease(ch))
		}
		leases = append(leases, b.acquire("a", nil))
		if n := len(b.Started()); n != 1 {
			t.Errorf("%d runners were started", n)
		}
		for _, l := range leases {
			if l.Instance() != sched.Instance(b.Started()[0]) {
				t.Error("a lease is on another runner")
			}
			l.Release()
			l.Release()
		}
		if leases[0].LoadDuration < time.Second || leases[10].LoadDuration != 0 {
			t.Errorf("load durations: %v first, %v later", leases[0].LoadDuration, leases[10].LoadDuration)
		}
		if got := b.Loaded(t.Context()); len(got) != 1 || got[0].Leases != 0 {
			t.Errorf("after all releases: %+v", got)
		}
	})
}

// keep_alive counts from the last release, a busy runner is never unloaded, and a request's value replaces the
// runner's.
func TestKeepAlive(t *testing.T) {
	for _, tt := range []struct {
		name  string
		keep  *api.Duration
		after time.Duration
		gone  bool
	}{
		{"default stays", nil, 4*time.Minute + 59*time.Second, false},
		{"default goes", nil, 5*time.Minute + time.Second, true},
		{"given stays", seconds(10), 9 * time.Second, false},
		{"given goes", seconds(10), 11 * time.Second, true},
		{"zero goes at once", seconds(0), 0, true},
		{"forever as parsed", &api.Duration{Duration: sched.Forever}, 10000 * time.Hour, false},
		{"negative", seconds(-1), 10000 * time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, sched.Params{}, func(t *testing.T, b bed) {
				l := b.acquire("a", tt.keep)
				time.Sleep(time.Hour)
				if !b.Started()[0].Alive() {
					t.Fatal("a runner in use was unloaded")
				}
				l.Release()
				time.Sleep(tt.after)
				synctest.Wait()
				if gone := !b.Started()[0].Alive(); gone != tt.gone {
					t.Errorf("gone: %v, want %v", gone, tt.gone)
				}
			})
		})
	}
}

func TestKeepAliveOfLastRequestCounts(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		b.acquire("a", seconds(3600)).Release()
		b.acquire("a", seconds(10)).Release()
		b.acquire("a", nil).Release()
		time.Sleep(9 * time.Second)
		b.expect("a;")
		// A request in the last moment pauses the timer.
		l := b.acquire("a", nil)
		time.Sleep(time.Minute)
		b.expect("a;")
		l.Release()
		time.Sleep(11 * time.Second)
		b.expect("")
	})
}

func TestKeepAliveZeroWaitsForOthers(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		stream := b.acquire("a", nil)
		b.acquire("a", seconds(0)).Release()
		time.Sleep(time.Minute)
		synctest.Wait()
		if !b.Started()[0].Alive() {
			t.Fatal("keep_alive 0 of one request ended another's runner")
		}
		stream.Release()
		b.expect("")
	})
}

func TestEvictsLeastRecentlyUsedIdle(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 3}, func(t *testing.T, b bed) {
		busy := b.acquire("a", nil)
		for _, n := range []string{"b", "c", "b"} {
			time.Sleep(time.Second)
			b.acquire(n, nil).Release()
		}
		b.acquire("d", nil).Release()
		b.expect("a;b;d;")
		busy.Release()
	})
}

func TestWaitsForABusyOne(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 1}, func(t *testing.T, b bed) {
		a := b.acquire("a", nil)
		waiting := b.start(t.Context(), "b", nil)
		b.waits(waiting)
		a.Release()
		b.lease(waiting).Release()
		b.expect("b;")
	})
}

// A model in constant use must not keep another out for ever: from when the other waits, newcomers queue behind it.
func TestConstantUseDoesNotStarveOthers(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 1}, func(t *testing.T, b bed) {
		first := b.acquire("a", nil)
		other := b.start(t.Context(), "b", nil)
		again := b.start(t.Context(), "a", nil)
		b.waits(again)
		first.Release()
		l := b.lease(other)
		b.waits(again)
		l.Release()
		b.lease(again).Release()
		if n := len(b.Started()); n != 3 {
			t.Errorf("%d starts, want 3", n)
		}
	})
}

func TestBusyModelServesAgainWhenNobodyNeedsItsPlace(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 1}, func(t *testing.T, b bed) {
		first := b.acquire("a", nil)
		ctx, leave := context.WithCancel(t.Context())
		other := b.start(ctx, "b", nil)
		again := b.start(t.Context(), "a", nil)
		b.waits(again)
		leave()
		b.lease(again).Release()
		if o := <-other; !errors.Is(o.err, errdefs.ErrCanceled) || o.err.Error() != "request canceled" {
			t.Errorf("got %v", o.err)
		}
		first.Release()
		b.expect("a;")
	})
}

// A request for a loaded model is served while another model loads, and loads run side by side.
func TestNoHeadOfLineBlocking(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 3}, func(t *testing.T, b bed) {
		b.acquire("a", nil).Release()
		b.OnLoad = func(context.Context, *store.Model, func(*runnerpb.LoadProgress)) error {
			time.Sleep(time.Hour)
			return nil
		}
		began := time.Now()
		one, two := b.start(t.Context(), "b", nil), b.start(t.Context(), "c", nil)
		b.acquire("a", nil).Release()
		if d := time.Since(began); d != 0 {
			t.Errorf("a loaded model's request waited %v", d)
		}
		b.lease(one).Release()
		b.lease(two).Release()
		if d := time.Since(began); d > time.Hour {
			t.Errorf("two loads took %v, so they ran one after the other", d)
		}
	})
}

func TestLeavingDuringLoad(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		var canceled atomic.Int32
		b.OnLoad = func(ctx context.Context, _ *store.Model, _ func(*runnerpb.LoadProgress)) error {
			select {
			case <-time.After(time.Minute):
				return nil
			case <-ctx.Done():
				canceled.Add(1)
				return ctx.Err()
			}
		}
		ctx1, leave1 := context.WithCancel(t.Context())
		ctx2, leave2 := context.WithCancel(t.Context())
		one, two := b.start(ctx1, "a", nil), b.start(ctx2, "a", nil)
		leave1()
		<-one
		synctest.Wait()
		if canceled.Load() != 0 {
			t.Fatal("the load was given up although somebody waits for it")
		}
		leave2()
		<-two
		synctest.Wait()
		if canceled.Load() != 1 || len(b.Loaded(t.Context())) != 0 {
			t.Fatalf("canceled %d times, loaded %d", canceled.Load(), len(b.Loaded(t.Context())))
		}
		// Giving up is no failure: the next one starts at once.
		b.OnLoad = nil
		b.acquire("a", nil).Release()
	})
}

// A load that ends well after everybody left is stopped, and who comes meanwhile gets a runner of his own.
func TestLoadThatIgnoresCancellation(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		b.OnLoad = func(context.Context, *store.Model, func(*runnerpb.LoadProgress)) error {
			time.Sleep(time.Minute)
			return nil
		}
		ctx, leave := context.WithCancel(t.Context())
		one := b.start(ctx, "a", nil)
		leave()
		<-one
		l := b.acquire("a", nil)
		defer l.Release()
		rs := b.Started()
		if len(rs) != 2 || rs[0].Alive() || !rs[1].Alive() {
			t.Errorf("%d runners, first alive %v", len(rs), rs[0].Alive())
		}
	})
}

func TestLoadProgressReachesAllWaiters(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		b.OnLoad = func(_ context.Context, _ *store.Model, progress func(*runnerpb.LoadProgress)) error {
			for i := range uint64(3) {
				time.Sleep(time.Second)
				progress(&runnerpb.LoadProgress{Stage: runnerpb.LoadProgress_STAGE_WEIGHTS, BytesDone: i + 1, BytesTotal: 3})
			}
			time.Sleep(time.Second)
			return nil
		}
		var seen [2]string
		var leases [2]chan outcome
		for i := range seen {
			leases[i] = make(chan outcome, 1)
			go func() {
				l, err := b.Acquire(t.Context(), named("a"), sched.AcquireOptions{Progress: func(p *runnerpb.LoadProgress) {
					seen[i] += fmt.Sprint(p.GetBytesDone(), "/", p.GetBytesTotal(), " ")
				}})
				leases[i] <- outcome{l, err}
			}()
		}
		for i := range seen {
			b.lease(leases[i]).Release()
			if seen[i] != "1/3 2/3 3/3 " {
				t.Errorf("waiter %d saw %q", i, seen[i])
			}
		}
	})
}

func TestQueueFull(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 1, MaxQueue: 2}, func(t *testing.T, b bed) {
		a := b.acquire("a", nil)
		one, two := b.start(t.Context(), "b", nil), b.start(t.Context(), "c", nil)
		_, err := b.Acquire(t.Context(), named("d"), sched.AcquireOptions{})
		if !errors.Is(err, errdefs.ErrBusy) || err.Error() != "server busy, please try again.  maximum pending requests exceeded" {
			t.Errorf("got %v", err)
		}
		a.Release()
		b.lease(one).Release()
		b.lease(two).Release()
		b.acquire("d", nil).Release()
	})
}

func TestCrashIsNoticedAndReplaced(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		old := b.acquire("a", nil)
		b.Started()[0].Crash(errors.New("signal: killed"))
		b.expect("")
		next := b.acquire("a", nil)
		if len(b.Started()) != 2 || next.Instance() != sched.Instance(b.Started()[1]) {
			t.Error("the next lease is not on a new runner")
		}
		// The lease on the dead runner must not count against the new one.
		old.Release()
		if got := b.Loaded(t.Context()); len(got) != 1 || got[0].Leases != 1 {
			t.Errorf("got %+v", got)
		}
		next.Release()
	})
}

func TestRepeatedFailuresPauseStarts(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		starts := 0
		cause := errdefs.New(errdefs.ErrUnsupported, "unsupported architecture: x")
		b.OnLoad = func(context.Context, *store.Model, func(*runnerpb.LoadProgress)) error {
			starts++
			return cause
		}
		fail := func() error {
			_, err := b.Acquire(t.Context(), named("a"), sched.AcquireOptions{})
			return err
		}
		if err := fail(); !errors.Is(err, errdefs.ErrUnsupported) || err.Error() != cause.Error() {
			t.Errorf("first: %v", err)
		}
		if fail(); starts != 2 {
			t.Errorf("%d starts, want 2: one failure makes no pause", starts)
		}
		want := "unsupported architecture: x (failed 2 times in a row; it is tried again after 1s)"
		if err := fail(); !errors.Is(err, errdefs.ErrUnsupported) || err.Error() != want || starts != 2 {
			t.Errorf("in the pause: %v after %d starts", err, starts)
		}
		time.Sleep(time.Second)
		if fail(); starts != 3 {
			t.Errorf("%d starts, want 3 after the pause", starts)
		}
		for range 20 {
			time.Sleep(30 * time.Second)
			_ = fail()
		}
		if starts != 23 {
			t.Errorf("%d starts, want 23: a pause is at most 30 s", starts)
		}
		if open := b.Failing(); len(open) != 1 || open[0].Model != "a:latest" || open[0].Count != 23 {
			t.Errorf("failing: %v", open)
		}
		// What may be better later is told so, with the time to wait; what is wrong with the model is not.
		cause = errdefs.New(errdefs.ErrUnavailable, "killed by SIGSEGV")
		time.Sleep(30 * time.Second)
		_ = fail()
		var failing *sched.Failing
		if err := fail(); !errors.Is(err, errdefs.ErrBusy) || errors.Is(err, errdefs.ErrUnavailable) || !errors.As(err, &failing) || failing.RetryAfter() != 30*time.Second {
			t.Errorf("got %v of kind %v", err, errdefs.Kind(err))
		}
		// Other models do not suffer, and success ends it.
		b.OnLoad = nil
		b.acquire("b", nil).Release()
		time.Sleep(30 * time.Second)
		b.acquire("a", nil).Release()
		b.Started()[1].Crash(errors.New("gone"))
		synctest.Wait()
		b.acquire("a", nil).Release()
	})
}

func TestUnload(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		b.acquire("a", nil).Release()
		b.Unload(named("b"))
		b.expect("a;")
		b.Unload(named("a"))
		b.expect("")

		l := b.acquire("a", nil)
		b.Unload(named("a"))
		time.Sleep(time.Second)
		synctest.Wait()
		if r := b.Started()[1]; !r.Alive() {
			t.Fatal("a runner in use was stopped")
		}
		l.Release()
		b.expect("")

		// The model was created anew under its name: its old runner is meant all the same.
		b.acquire("a", nil).Release()
		other := named("a")
		other.Digest = "sha256:other"
		b.Unload(other)
		b.expect("")
	})
}

// While a runner stops it holds its place: its memory is not free yet.
func TestStoppingRunnerHoldsItsPlace(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 1}, func(t *testing.T, b bed) {
		b.OnStart = func(r *schedtest.Runner) {
			r.OnStop = func(context.Context) error { time.Sleep(2 * time.Second); return nil }
		}
		b.acquire("a", nil).Release()
		began := time.Now()
		l := b.acquire("b", nil)
		if d := time.Since(began); d != 2*time.Second {
			t.Errorf("the next load began after %v", d)
		}
		l.Release()
	})
}

func TestRunnerThatDoesNotStop(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 1, StopTimeout: 3 * time.Second}, func(t *testing.T, b bed) {
		b.OnStart = func(r *schedtest.Runner) {
			r.OnStop = func(ctx context.Context) error { <-ctx.Done(); r.Crash(nil); return ctx.Err() }
		}
		b.acquire("a", nil).Release()
		began := time.Now()
		b.acquire("b", nil).Release()
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("the next load began after %v", d)
		}
	})
}

func TestLoadedSnapshot(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		b.OnStart = func(r *schedtest.Runner) {
			if r.Model.Name.Model == "b" {
				r.ModelInfo.Device = "metal"
				r.State = nil
			}
		}
		b.acquire("a", seconds(60)).Release()
		busy := b.acquire("b", seconds(3600))
		b.OnLoad = func(context.Context, *store.Model, func(*runnerpb.LoadProgress)) error {
			time.Sleep(time.Second)
			return nil
		}
		pending := b.start(t.Context(), "c", nil)
		now := time.Now()
		got := b.Loaded(t.Context())
		if len(got) != 3 || got[0].Model.Name.Model != "b" || got[1].Model.Name.Model != "c" || got[2].Model.Name.Model != "a" {
			t.Fatalf("got %+v", got)
		}
		if x := got[0]; x.Size != 1000 || x.SizeVRAM != 1000 || x.Leases != 1 || x.ContextLength != 4096 || !x.ExpiresAt.Equal(now.Add(time.Hour)) {
			t.Errorf("busy: %+v", x)
		}
		if x := got[1]; !x.Loading || x.Size != 42 || x.ContextLength != 0 || !x.ExpiresAt.Equal(now.Add(5*time.Minute)) {
			t.Errorf("loading: %+v", x)
		}
		if x := got[2]; x.Size != 1500 || x.SizeVRAM != 0 || x.Leases != 0 || !x.ExpiresAt.Equal(now.Add(time.Minute)) {
			t.Errorf("idle: %+v", x)
		}
		busy.Release()
		b.lease(pending).Release()
	})
}

func TestShutdown(t *testing.T) {
	run(t, sched.Params{MaxLoaded: 2}, func(t *testing.T, b bed) {
		idle, busy := b.acquire("a", nil), b.acquire("b", nil)
		idle.Release()
		b.OnLoad = func(ctx context.Context, _ *store.Model, _ func(*runnerpb.LoadProgress)) error {
			<-ctx.Done()
			return ctx.Err()
		}
		load := b.start(t.Context(), "c", nil)
		queued := b.start(t.Context(), "d", nil)
		if err := b.Shutdown(t.Context()); err != nil {
			t.Fatalf("Shutdown: %v", err)
		}
		for _, ch := range []chan outcome{load, queued} {
			if o := <-ch; !errors.Is(o.err, sched.ErrShutdown) {
				t.Errorf("a waiting request got %+v", o)
			}
		}
		if _, err := b.Acquire(t.Context(), named("a"), sched.AcquireOptions{}); !errors.Is(err, sched.ErrShutdown) {
			t.Errorf("later: %v", err)
		}
		busy.Release()
		b.Unload(named("a"))
		if b.Loaded(t.Context()) != nil {
			t.Error("something is loaded")
		}
	})
}

func TestShutdownIsBounded(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		b.OnStart = func(r *schedtest.Runner) {
			r.OnStop = func(context.Context) error { time.Sleep(time.Minute); return nil }
		}
		b.acquire("a", nil).Release()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Shutdown(ctx); !errors.Is(err, errdefs.ErrTimeout) {
			t.Errorf("got %v", err)
		}
	})
}

// adapted gives a model an adapter in MLX form.
func adapted(m *store.Model, digest string) *store.Model {
	const adapter = "application/vnd.ollama.image.adapter"
	m.Format = store.FormatMLX
	m.Layers = append(m.Layers, store.Layer{MediaType: adapter, Name: "adapter_config.json", Digest: "sha256:c"},
		store.Layer{MediaType: adapter, Name: "adapters.safetensors", Digest: "sha256:" + digest})
	return m
}

// Requests to models that add an adapter to one base go to the base's runner, each with the adapter of its model.
func TestAdaptersOfOneBase(t *testing.T) {
	run(t, sched.Params{}, func(t *testing.T, b bed) {
		var asked []string
		b.OnStart = func(r *schedtest.Runner) {
			r.OnGenerate = func(ctx context.Context, req *runnerpb.GenerateRequest) (sched.Stream, error) {
				asked = append(asked, req.GetAdapter().GetName())
				return schedtest.Script(ctx, schedtest.Stop()), nil
			}
			r.OnEmbed = func(req *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
				asked = append(asked, req.GetAdapter().GetName())
				return &runnerpb.EmbedResponse{}, nil
			}
		}
		weights := store.Layer{MediaType: "application/vnd.ollmlx.image.file", Name: "model.safetensors", Digest: "sha256:w"}
		base, one, two := named("base"), named("one"), named("two")
		for _, m := range []*store.Model{base, one, two} {
			m.Layers = []store.Layer{weights}
		}
		adapted(one, "1")
		adapted(two, "2")
		var want []string
		for _, m := range []*store.Model{one, base, two, one} {
			l, err := b.Acquire(t.Context(), m, sched.AcquireOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Runner().Generate(t.Context(), &runnerpb.GenerateRequest{}); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Runner().Embed(t.Context(), &runnerpb.EmbedRequest{}); err != nil {
				t.Fatal(err)
			}
			l.Release()
			key := ""
			if a := m.Adapter(); a != nil {
				key = a.Key
			}
			want = append(want, key, key)
		}
		if !slices.Equal(asked, want) || want[0] == want[4] || want[0] == "" {
			t.Errorf("asked for %q, want %q", asked, want)
		}
		if len(b.Started()) != 1 || len(b.Loaded(t.Context())) != 1 {
			t.Errorf("%d runners, %d loaded", len(b.Started()), len(b.Loaded(t.Context())))
		}
		names := func() string {
			var names []string
			for _, x := range b.Loaded(t.Context()) {
				for _, m := range append([]*store.Model{x.Model}, x.Others...) {
					names = append(names, m.Name.Model)
				}
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		}
		for _, step := range []struct {
			unload *store.Model
			want   string
		}{{nil, "base one two"}, {two, "base one"}, {base, "one"}, {one, ""}} {
			if step.unload != nil {
				b.Unload(step.unload)
				synctest.Wait()
			}
			if got := names(); got != step.want {
				t.Errorf("loaded: %q, want %q", got, step.want)
			}
		}
	})
}

// What only the host reads makes no difference to a runner; every file that it reads does.
func TestModelsThatShareARunner(t *testing.T) {
	const file, image = "application/vnd.ollmlx.image.file", "application/vnd.ollama.image."
	weights := store.Layer{MediaType: file, Name: "model.safetensors", Digest: "sha256:w"}
	with := func(name string, more ...store.Layer) *store.Model {
		m := named(name)
		m.Layers = append([]store.Layer{weights}, more...)
		return m
	}
	for _, tt := range []struct {
		name  string
		other *store.Model
		share bool
	}{
		{"same files", with("b"), true},
		{"system prompt", with("b", store.Layer{MediaType: image + "system", Digest: "sha256:s"}), true},
		{"parameters and template", with("b", store.Layer{MediaType: image + "params"}, store.Layer{MediaType: image + "template"}), true},
		{"another file", with("b", store.Layer{MediaType: file, Name: "chat_template.jinja", Digest: "sha256:c"}), false},
		{"same file, another name", &store.Model{Name: named("b").Name, Layers: []store.Layer{{MediaType: file, Name: "other.safetensors", Digest: "sha256:w"}}}, false},
		{"adapter", with("b", store.Layer{MediaType: image + "adapter", Digest: "sha256:a"}), false},
		{"adapter in MLX form", adapted(with("b"), "1"), true},
		{"no layers", named("b"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, sched.Params{}, func(t *testing.T, b bed) {
				for _, m := range []*store.Model{with("a"), tt.other} {
					l, err := b.Acquire(t.Context(), m, sched.AcquireOptions{})
					if err != nil {
						t.Fatal(err)
					}
					l.Release()
				}
				if shared := len(b.Started()) == 1; shared != tt.share {
					t.Errorf("shared: %v", shared)
				}
			})
		})
	}
}
