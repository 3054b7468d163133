// Package registry moves models between the store and registries that speak Ollama's form of the OCI distribution
// protocol.
//
// The invariants: a registry is believed in nothing that can be checked (digests, sizes, lengths, names); a model appears
// in the store when all of it is here and verified, and not before; credentials go to the registry's own host and to no
// other; what was received is never asked for twice. docs/registry.md tells the same to users.
package registry

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// Options are what a client may ask for with a pull or push.
type Options struct {
	// Insecure allows plain http, and redirects to addresses that are not public.
	Insecure bool
	// Quantize is what the weights of a model of the hub are quantized to when they are here. Empty: nothing.
	Quantize string
}

// Puller brings models from elsewhere into the store. Progress is told in Ollama's words, by one goroutine at a time.
// The end of ctx ends the pull; what has come by then is kept for the next.
type Puller interface {
	Pull(ctx context.Context, n model.Name, o Options, progress func(api.ProgressResponse)) error
}

// Pusher sends stored models elsewhere.
type Pusher interface {
	Push(ctx context.Context, n model.Name, o Options, progress func(api.ProgressResponse)) error
}

// Defaults of Params.
const (
	DefaultStreams      = 4
	DefaultMinPart      = 100 << 20
	DefaultMaxPart      = 1 << 30
	DefaultStallTimeout = 30 * time.Second
	DefaultRetryDelay   = time.Second
	DefaultRetries      = 6
)

// Params configures a Client. Zero fields get the defaults.
type Params struct {
	Store *store.Store
	// KeyFile is the private key that signs requests for tokens, in OpenSSH's format. It is made when first needed.
	// Empty: nothing can be signed.
	KeyFile string
	// Streams is how many bodies are sent or received at once, in all pulls and pushes together.
	Streams int
	// A blob is transferred in parts of a sixteenth of its size, but no smaller or larger than these.
	MinPart, MaxPart int64
	// StallTimeout is how long a peer may send nothing before the connection is given up.
	StallTimeout time.Duration
	// RetryDelay is the pause before the first repetition; it doubles with each that brings nothing.
	RetryDelay time.Duration
	// Retries is how many repetitions in a row may bring nothing.
	Retries int
	// FreeSpace tells how much can be written. Nil: asks the store.
	FreeSpace func() (int64, error)
	// UserAgent names us to registries.
	UserAgent string
	Logger    *slog.Logger
}

// Client is a Puller and a Pusher for registries. One serves the whole process: it is what pulls of the same blob share.
type Client struct {
	params Params
	log    *slog.Logger
	// open reaches any address, public only those of the internet.
	open, public *http.Transport
	// slots has room for each body that may be under way.
	slots chan struct{}

	mu        sync.Mutex
	transfers map[string]*transfer // by digest
}

// New returns a client.
func New(p Params) *Client {
	p.Streams = cmp.Or(max(p.Streams, 0), DefaultStreams)
	p.MinPart = cmp.Or(p.MinPart, DefaultMinPart)
	p.MaxPart = max(cmp.Or(p.MaxPart, DefaultMaxPart), p.MinPart)
	p.StallTimeout = cmp.Or(p.StallTimeout, DefaultStallTimeout)
	p.RetryDelay = cmp.Or(p.RetryDelay, DefaultRetryDelay)
	p.Retries = cmp.Or(p.Retries, DefaultRetries)
	p.UserAgent = cmp.Or(p.UserAgent, "ollmlx")
	if p.FreeSpace == nil {
		p.FreeSpace = p.Store.FreeSpace
	}
	if p.Logger == nil {
		p.Logger = slog.Default()
	}
	return &Client{
		params: p, log: p.Logger,
		open: newTransport(nil), public: newTransport(refusePrivate),
		slots: make(chan struct{}, p.Streams), transfers: map[string]*transfer{},
	}
}

// partSize is the size of the parts of a blob.
func (c *Client) partSize(size int64) int64 {
	return min(max(size/16, c.params.MinPart), c.params.MaxPart)
}

// repository is one repository of a registry for the time of one pull or push.
type repository struct {
	client   *Client
	base     *url.URL // of the registry, without a path
	path     string   // namespace/model
	tag      string
	insecure bool
	push     bool
	// locate tells where a blob is; nil: in the registry's API.
	locate func(digest string) *url.URL
	// fixed means that the token is all there is: nobody is asked for another.
	fixed bool

	mu sync.Mutex
	// token is what authorizes requests; empty: none yet.
	token string
	// accepted is the token that worked last.
	accepted string
	// level says how it was got.
	level authLevel
	// private is set when the registry itself turned out not to be on a public address.
	private bool
}

func (c *Client) repository(n model.Name, o Options, push bool) (*repository, error) {
	if !modelname.Valid(n) {
		return nil, errdefs.New(errdefs.ErrInvalid, "invalid model name")
	}
	scheme := "https"
	switch {
	case o.Insecure:
		scheme = "http"
	case n.ProtocolScheme == "http":
		// The text is Ollama's.
		return nil, errdefs.New(errdefs.ErrInvalid, "insecure protocol http")
	}
	return &repository{
		client: c, base: &url.URL{Scheme: scheme, Host: n.Host}, insecure: o.Insecure, push: push,
		path: repositoryPath(n), tag: n.Tag,
	}, nil
}

// repositoryPath returns what a registry calls a model. The specification knows lower-case names only; Ollama's own
// registry has others too.
func repositoryPath(n model.Name) string {
	path := n.Namespace + "/" + n.Model
	if n.Host == modelname.RegistryHost {
		return path
	}
	return strings.ToLower(path)
}

// blob returns the address of a blob.
func (r *repository) blob(digest string) *url.URL {
	if r.locate != nil {
		return r.locate(digest)
	}
	return r.url("blobs", digest)
}

// url returns the address of a part of the repository's API.
func (r *repository) url(parts ...string) *url.URL {
	return r.base.JoinPath(append([]string{"v2", r.path}, parts...)...)
}
