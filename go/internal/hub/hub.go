// Package hub brings models from the Hugging Face hub into the store.
//
// The idea: a Python process with the hub's own library (task "hub", hub.proto) says what a repository holds, who the user
// is and what is in the library's cache; the bytes come by the same transfers as those of registries (package registry),
// which share, repeat, take up again and verify; and the model is made of the files as create makes it of uploaded ones.
// The invariants: nothing is fetched but what a model needs, never pickle and never code; every file is checked against
// the hub's digest; the token goes to the hub's own host only; and a model appears or changes when all of it is here.
package hub

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/registry"
	"github.com/ollmlx/ollmlx/go/internal/runner"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// task names the process in its command line and its handshake.
const task = "hub"

// DefaultIdle is how long the process waits for something to do before it is ended.
const DefaultIdle = 30 * time.Second

// Params configures a Client.
type Params struct {
	// Runner starts the process; Engine is filled in. Its Env must open the way to the network (config.HubEnv).
	Runner runner.Params
	// Store and Transfers are needed for Pull only.
	Store     *store.Store
	Transfers *registry.Client
	// Converter quantizes what is pulled. Nil: nothing can be.
	Converter store.Converter
	// Idle is how long the process is kept without work. 0: DefaultIdle.
	Idle   time.Duration
	Logger *slog.Logger
}

// Client asks the hub. It starts a process when there is something to ask and ends it when there has been nothing for a
// while. Close ends it for good.
type Client struct {
	params Params
	log    *slog.Logger

	mu     sync.Mutex
	closed bool
	// proc is the process that new calls use; nil: none.
	proc *process
}

// process is one process and those who use it.
type process struct {
	// started is closed when runner or err is set.
	started chan struct{}
	runner  *runner.Runner
	err     error

	// Guarded by Client.mu.
	users int
	idle  *time.Timer
}

// New returns a client. Nothing is started yet.
func New(p Params) *Client {
	p.Idle = cmp.Or(p.Idle, DefaultIdle)
	p.Runner.Engine, p.Runner.ModelName = task, ""
	if p.Logger == nil {
		p.Logger = slog.Default()
	}
	return &Client{params: p, log: p.Logger}
}

// call does something with the service, in a process that is started if there is none. A process that dies under it is
// replaced once: every call may be repeated.
func (c *Client) call(ctx context.Context, do func(ctx context.Context, hub runnerpb.HubClient) error) error {
	died, err := c.try(ctx, do)
	if died && ctx.Err() == nil {
		_, err = c.try(ctx, do)
	}
	return err
}

func (c *Client) try(ctx context.Context, do func(ctx context.Context, hub runnerpb.HubClient) error) (died bool, err error) {
	p, err := c.acquire(ctx)
	if err != nil {
		return false, err
	}
	defer c.release(p)
	err = p.runner.CallError(ctx, do(ctx, runnerpb.NewHubClient(p.runner.Conn())))
	if err == nil {
		return false, nil
	}
	select {
	case <-p.runner.Done():
		c.drop(p)
		return true, err
	default:
		return false, err
	}
}

// acquire returns a process that runs. release must follow.
func (c *Client) acquire(ctx context.Context) (*process, error) {
	p, err := c.join()
	if err != nil {
		return nil, err
	}
	select {
	case <-p.started:
	case <-ctx.Done():
		c.release(p)
		return nil, context.Cause(ctx)
	}
	if p.err != nil {
		c.release(p)
		return nil, p.err
	}
	return p, nil
}

func (c *Client) join() (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errdefs.New(errdefs.ErrUnavailable, "the server is shutting down")
	}
	if c.proc == nil {
		c.proc = &process{started: make(chan struct{})}
		go c.start(c.proc)
	}
	c.proc.users++
	if c.proc.idle != nil {
		c.proc.idle.Stop()
		c.proc.idle = nil
	}
	return c.proc, nil
}

// start runs the process. It is not the caller's own context that bounds the start: others may have joined.
func (c *Client) start(p *process) {
	p.runner, p.err = runner.Start(context.Background(), c.params.Runner)
	if p.err != nil {
		p.err = errdefs.New(errdefs.Kind(p.err), "the process that asks the Hugging Face hub: %w", p.err)
		c.drop(p)
		close(p.started)
		return
	}
	close(p.started)
	<-p.runner.Done()
	c.drop(p)
}

// drop makes the next call start another process.
func (c *Client) drop(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == p {
		c.proc = nil
	}
}

func (c *Client) release(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.users--; p.users > 0 {
		return
	}
	if p.idle != nil {
		p.idle.Stop()
	}
	wait := c.params.Idle
	if c.closed || c.proc != p {
		wait = 0
	}
	p.idle = time.AfterFunc(wait, func() { c.retire(p) })
}

// retire ends a process that nobody uses.
func (c *Client) retire(p *process) {
	c.mu.Lock()
	if p.users > 0 {
		c.mu.Unlock()
		return
	}
	if c.proc == p {
		c.proc = nil
	}
	c.mu.Unlock()
	c.stop(p)
}

func (c *Client) stop(p *process) {
	<-p.started
	if p.runner == nil {
		return
	}
	if err := p.runner.Stop(context.Background()); err != nil {
		c.log.Error("hub: the process remains", "error", err)
	}
}

// Close ends the process, and calls that run with it.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	p := c.proc
	c.proc = nil
	c.mu.Unlock()
	if p != nil {
		c.stop(p)
	}
}

// ask makes one call of the service.
func ask[Q, R any](ctx context.Context, c *Client, method func(runnerpb.HubClient, context.Context, *Q, ...grpc.CallOption) (*R, error), q *Q) (r *R, err error) {
	err = c.call(ctx, func(ctx context.Context, hub runnerpb.HubClient) error {
		r, err = method(hub, ctx, q)
		return err
	})
	return r, err
}

// WhoAmI returns the account that the current token stands for.
func (c *Client) WhoAmI(ctx context.Context) (*runnerpb.Account, error) {
	return ask(ctx, c, runnerpb.HubClient.WhoAmI, &runnerpb.WhoAmIRequest{})
}

// Login checks a token and keeps it.
func (c *Client) Login(ctx context.Context, token string) (*runnerpb.Account, error) {
	return ask(ctx, c, runnerpb.HubClient.Login, &runnerpb.LoginRequest{Token: token})
}

// Logout removes the kept token.
func (c *Client) Logout(ctx context.Context) (*runnerpb.LogoutResponse, error) {
	return ask(ctx, c, runnerpb.HubClient.Logout, &runnerpb.LogoutRequest{})
}

// Search lists models whose names contain query, the most downloaded first.
func (c *Client) Search(ctx context.Context, q *runnerpb.SearchRequest) ([]*runnerpb.HubModel, error) {
	r, err := ask(ctx, c, runnerpb.HubClient.Search, q)
	return r.GetModels(), err
}
