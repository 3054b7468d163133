package runner

import (
	"context"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// maxMessage bounds one gRPC message in either direction: vectors of a large Embed, images of a long chat. A message
// beyond it would break the session and with it the requests of others, so the host never sends one.
const maxMessage = 512 << 20

// State is where a runner is in its life.
type State int

// The states and what may follow each. Any state but StateExited may be followed by StateStopping (Stop was called) and
// by StateExited (the process ended).
const (
	// StateStarting: the process runs, its handshake is awaited. Seen only inside Start. Then StateReady.
	StateStarting State = iota
	// StateReady: connected, no model. Load, Status and Stop are possible. Then StateLoading.
	StateReady
	// StateLoading: Load is under way. Status and Stop are possible. Then StateServing, or StateReady if it failed.
	StateLoading
	// StateServing: a model is held, all calls but Load are possible.
	StateServing
	// StateStopping: the process is being ended; requests that run are drained or fail, new ones are refused.
	StateStopping
	// StateExited: the process has been waited for. Nothing follows.
	StateExited
)

var stateNames = [...]string{"starting", "ready", "loading", "serving", "stopping", "exited"}

func (s State) String() string { return stateNames[s] }

// Runner is one runner process, from Start until Done is closed.
//
// One goroutine (own) owns its state: it alone changes it, all others ask it to with an op and read what it published.
// So a Stop during a Load, a death during a Stop and two Stops at once are each one well-ordered sequence of ops.
//
// All methods may be called at any time and by several goroutines at once.
type Runner struct {
	params Params
	id     string
	socket string
	// base is the logger without the model's name.
	base *slog.Logger

	proc      *process
	conn      *grpc.ClientConn
	client    runnerpb.RunnerClient
	handshake Handshake
	sessions  sessions

	ops       chan op
	published atomic.Pointer[snapshot]
	done      chan struct{}

	// hurry is closed when a Stop has run out of patience; stuck when the process has survived even SIGKILL.
	hurry     chan struct{}
	hurryOnce sync.Once
	stuck     chan struct{}
}

// snapshot is what the owner publishes. It is never changed after that.
type snapshot struct {
	state State
	// info is set while serving.
	info *runnerpb.ModelInfo
	// stopped: Stop was called, so the end is no fault. Stays set after the exit.
	stopped bool
	// killed is why the host killed the process; nil if it did not.
	killed error
	// cancelLoad ends the Load that is under way; set while loading.
	cancelLoad context.CancelCauseFunc
}

// op is a change of the state, done by the owner.
type op struct {
	do    func(now snapshot) (snapshot, error)
	reply chan error
}

// Start executes a runner, waits for its handshake and connects to it. An error tells the exit code, the last lines of
// the log and, where it can be told, the cause; nothing of the process is left then. The end of ctx ends the start.
func Start(ctx context.Context, p Params) (*Runner, error) {
	p, err := p.checked()
	if err != nil {
		return nil, err
	}
	id, socket, err := p.Dir.newSocket()
	if err != nil {
		return nil, err
	}
	// It connects only when it is first used.
	conn, err := dial(socket)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrInternal, "the runner's socket %s cannot be used: %w", socket, err)
	}
	base := p.Logger.With("runner", id)
	logger := base
	if p.ModelName != "" {
		logger = base.With("model", p.ModelName)
	}
	proc, err := startProcess(processParams{
		command: p.commandLine(socket), dir: p.Dir.Path(), env: p.environment(), logger: logger,
	})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	r := &Runner{
		params: p, id: id, socket: socket, base: base, proc: proc, conn: conn, client: runnerpb.NewRunnerClient(conn),
		ops: make(chan op), done: make(chan struct{}), hurry: make(chan struct{}), stuck: make(chan struct{}),
	}
	r.sessions.open = r.openSession
	r.published.Store(&snapshot{state: StateStarting})
	go r.own()

	limited, cancel := context.WithTimeoutCause(ctx, p.Timeouts.Start, errStartTimeout)
	defer cancel()
	if err := r.connect(limited); err != nil {
		return nil, r.abandonStart(ctx, err)
	}
	logger.Debug("runner started", "pid", r.PID(), "versions", r.handshake.Versions)
	return r, nil
}

// connect waits for the handshake and for the first answer over the socket.
func (r *Runner) connect(ctx context.Context) (err error) {
	r.handshake, err = readHandshake(ctx, r.proc.handshake, r.params.Engine)
	_ = r.proc.handshake.Close()
	if err != nil {
		return err
	}
	asking, cancel := until(ctx, r.proc.exited, errExited)
	defer cancel()
	_, err = r.client.Status(asking, &runnerpb.StatusRequest{}, grpc.WaitForReady(true))
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case r.diedUnder(err):
		return errExited
	default:
		return errdefs.New(errdefs.ErrInternal, "it does not answer on its socket: %w", errdefs.FromGRPC(err))
	}
	return r.change(func(now snapshot) (snapshot, error) {
		now.state = StateReady
		return now, nil
	})
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///runner",
		// A dialer of its own, because a path may hold characters that a URL may not.
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}),
		grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// The socket's file may be swept from a temporary directory; the first connection must serve for good.
		grpc.WithIdleTimeout(0),
	)
}

// abandonStart ends what is left of a start and tells why it failed.
func (r *Runner) abandonStart(ctx context.Context, err error) error {
	if err == errNoHandshake {
		// The pipe closes a moment before the process ends, and its exit code is what the user needs.
		r.proc.exitedWithin(time.Second, nil)
	}
	exited := r.proc.exitedWithin(0, nil)
	r.kill()
	if ctx.Err() != nil {
		return errdefs.New(errdefs.ErrCanceled, "the start of a runner was given up: %w", context.Cause(ctx))
	}
	return startError(r, err, exited)
}

// kill ends the process at once and waits for that.
func (r *Runner) kill() {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Stop(now); err != nil {
		r.logger().Error("runner cannot be killed", "pid", r.PID(), "error", err)
	}
}

// own is the owner of the state. It ends with the process, after everything of it has been given back.
func (r *Runner) own() {
	defer close(r.done)
	for {
		select {
		case o := <-r.ops:
			next, err := o.do(*r.published.Load())
			if err == nil {
				r.published.Store(&next)
			}
			o.reply <- err
		case <-r.proc.exited:
			r.finish()
			return
		}
	}
}

// finish publishes the end, ends every request with its reason, and gives back what the runner held.
func (r *Runner) finish() {
	last := *r.published.Load()
	if last.cancelLoad != nil {
		last.cancelLoad(errExited)
	}
	r.published.Store(&snapshot{state: StateExited, stopped: last.stopped, killed: last.killed, info: last.info})
	r.sessions.end(r.exitError())
	_ = r.conn.Close()
	r.proc.close()
	// A runner removes its own socket unless it was killed.
	_ = os.Remove(r.socket)

	level := slog.LevelDebug
	if !last.stopped {
		level = slog.LevelError
	}
	r.logger().Log(context.Background(), level, "runner ended", "pid", r.PID(), "reason", exitReason(r.proc.state), "asked", last.stopped)
}

// change has the owner change the state; the error is that of do, or tells that the runner has ended.
func (r *Runner) change(do func(snapshot) (snapshot, error)) error {
	o := op{do: do, reply: make(chan error, 1)}
	select {
	case r.ops <- o:
		return <-o.reply
	case <-r.done:
		return r.exitError()
	}
}

// logger names the runner and the model that it has or is to have.
func (r *Runner) logger() *slog.Logger { return r.proc.logs.logger.Load() }

// name gives the logger the name of a model.
func (r *Runner) name(model string) {
	if model != "" {
		r.proc.logs.logger.Store(r.base.With("model", model))
	}
}

// ID names the runner in log records.
func (r *Runner) ID() string { return r.id }

// PID returns the process id, also after the exit.
func (r *Runner) PID() int { return r.proc.pid() }

// Handshake returns what the runner announced.
func (r *Runner) Handshake() Handshake { return r.handshake }

// State returns where the runner is in its life.
func (r *Runner) State() State { return r.published.Load().state }

// Info returns the loaded model, nil until there is one. It stays true of a runner that has ended, so that listings can
// tell of a model to its very end.
func (r *Runner) Info() *runnerpb.ModelInfo { return r.published.Load().info }

// Done is closed when the process has ended and nothing of it is left.
func (r *Runner) Done() <-chan struct{} { return r.done }

// Err returns nil until Done is closed. Then it tells how the runner ended on its own, with the last lines of its log;
// it is nil if Stop ended it.
func (r *Runner) Err() error {
	select {
	case <-r.done:
	default:
		return nil
	}
	if r.published.Load().stopped {
		return nil
	}
	return withTail(r.exitError(), r.proc.logs.tail.String())
}

// until returns a context that also ends, with a cause, when a channel is closed.
func until(ctx context.Context, closed <-chan struct{}, cause error) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-closed:
			cancel(cause)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}
