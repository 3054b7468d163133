package runnertest

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// service is the gRPC service of the fake runner.
type service struct {
	runnerpb.UnimplementedRunnerServer
	options Options
	// stopped is closed when Shutdown has been answered for.
	stopped chan struct{}
	once    sync.Once
	// stopping is closed when requests that still run are to fail.
	stopping chan struct{}
	draining atomic.Bool

	mu      sync.Mutex
	loading bool
	model   *runnerpb.ModelInfo
	width   int
	words   vocabulary

	running, queued atomic.Int64
	steps           atomic.Uint64
}

func newService(o Options) *service {
	return &service{options: o, stopped: make(chan struct{}), stopping: make(chan struct{})}
}

func (s *service) Load(req *runnerpb.LoadRequest, stream runnerpb.Runner_LoadServer) error {
	if err := s.beginLoad(); err != nil {
		return err
	}
	model, err := s.load(req, stream)
	s.mu.Lock()
	s.loading, s.model, s.width = false, model, int(req.GetNumParallel())
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return stream.Send(&runnerpb.LoadProgress{Stage: runnerpb.LoadProgress_STAGE_READY, Model: model})
}

func (s *service) beginLoad() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loading || s.model != nil {
		return status.Error(codes.FailedPrecondition, "a model is held already")
	}
	s.loading = true
	return nil
}

func (s *service) load(req *runnerpb.LoadRequest, stream runnerpb.Runner_LoadServer) (*runnerpb.ModelInfo, error) {
	o := s.options
	progress := &runnerpb.LoadProgress{Stage: runnerpb.LoadProgress_STAGE_WEIGHTS, BytesTotal: uint64(o.LoadSteps)}
	for i := 0; i < o.LoadSteps || o.LoadHangs; i++ {
		progress.BytesDone = uint64(min(i, o.LoadSteps))
		if err := stream.Send(progress); err != nil {
			return nil, err
		}
		select {
		case <-stream.Context().Done():
			return nil, status.FromContextError(stream.Context().Err()).Err()
		case <-time.After(max(o.LoadInterval, time.Millisecond)):
		}
	}
	o.crashAt(CrashAtLoad)
	if o.LoadFails != nil {
		return nil, status.Error(codes.Code(o.LoadFails.Code), o.LoadFails.Message)
	}
	context := o.Context
	if context == 0 {
		context = 2048
	}
	capabilities := o.Capabilities
	if len(capabilities) == 0 {
		capabilities = []string{"completion"}
	}
	limit := context
	if n := req.GetNumCtx(); n != 0 {
		limit = min(limit, n)
	}
	return &runnerpb.ModelInfo{
		Architecture: "fake", MaxContextLength: context, ContextLength: limit, Capabilities: capabilities,
		WeightBytes: o.WeightBytes, Device: "cpu", Batches: true,
	}, nil
}

func (s *service) held() *runnerpb.ModelInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.model
}

func (s *service) Status(context.Context, *runnerpb.StatusRequest) (*runnerpb.StatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := runnerpb.StatusResponse_STATE_IDLE
	switch {
	case s.draining.Load():
		state = runnerpb.StatusResponse_STATE_STOPPING
	case s.loading:
		state = runnerpb.StatusResponse_STATE_LOADING
	case s.model != nil:
		state = runnerpb.StatusResponse_STATE_READY
	}
	return &runnerpb.StatusResponse{
		State: state, Model: s.model, Running: uint32(s.running.Load()), Queued: uint32(s.queued.Load()),
		Steps: s.steps.Load(), Memory: &runnerpb.Memory{ActiveBytes: s.options.WeightBytes},
	}, nil
}

func (s *service) Shutdown(ctx context.Context, req *runnerpb.ShutdownRequest) (*runnerpb.ShutdownResponse, error) {
	s.options.crashAt(CrashAtShutdown)
	if s.options.ShutdownHangs {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	s.draining.Store(true)
	deadline := time.After(time.Duration(req.GetDrainNs()))
	for s.running.Load()+s.queued.Load() > 0 {
		select {
		case <-deadline:
			s.once.Do(func() { close(s.stopping) })
			deadline = nil
		case <-time.After(time.Millisecond):
		}
	}
	// The process ends only after the answer is on its way: GracefulStop waits for it.
	defer close(s.stopped)
	return &runnerpb.ShutdownResponse{}, nil
}

func (s *service) Embed(_ context.Context, req *runnerpb.EmbedRequest) (*runnerpb.EmbedResponse, error) {
	if s.held() == nil {
		return nil, errNoModel
	}
	const dimensions = 8
	resp := &runnerpb.EmbedResponse{}
	for _, input := range req.GetInputs() {
		sum := fnv.New64a()
		_, _ = sum.Write([]byte(input))
		bits := sum.Sum64()
		values := make([]float32, dimensions)
		for i := range values {
			values[i] = float32(bits>>(8*i)&0xff) / 255
		}
		resp.Embeddings = append(resp.Embeddings, &runnerpb.Embedding{Values: values})
		resp.PromptTokens += uint32(len(split(input)))
	}
	return resp, nil
}

// Rerank scores a document by how many of its tokens are in the query.
func (s *service) Rerank(_ context.Context, req *runnerpb.RerankRequest) (*runnerpb.RerankResponse, error) {
	if s.held() == nil {
		return nil, errNoModel
	}
	query := split(req.GetQuery())
	resp := &runnerpb.RerankResponse{}
	for _, document := range req.GetDocuments() {
		found := 0
		tokens := split(document)
		for _, token := range tokens {
			if slices.Contains(query, token) {
				found++
			}
		}
		resp.Scores = append(resp.Scores, float32(found)/float32(max(len(tokens), 1)))
		resp.PromptTokens += uint32(len(query) + len(tokens))
	}
	return resp, nil
}

func (s *service) Tokenize(_ context.Context, req *runnerpb.TokenizeRequest) (*runnerpb.TokenizeResponse, error) {
	if s.held() == nil {
		return nil, errNoModel
	}
	text := req.GetPrompt().GetText()
	if req.GetChat() != nil {
		text = rendered(req.GetChat())
	}
	return &runnerpb.TokenizeResponse{Tokens: s.words.encode(split(text)), Rendered: text}, nil
}

func (s *service) Detokenize(_ context.Context, req *runnerpb.DetokenizeRequest) (*runnerpb.DetokenizeResponse, error) {
	if s.held() == nil {
		return nil, errNoModel
	}
	return &runnerpb.DetokenizeResponse{Text: s.words.decode(req.GetTokens())}, nil
}

var errNoModel = status.Error(codes.FailedPrecondition, "no model is loaded")

// split cuts text into the fake's tokens: words, each with the space after it.
func split(text string) []string {
	if text == "" {
		return nil
	}
	return strings.SplitAfter(text, " ")
}

// rendered is the fake's chat template.
func rendered(chat *runnerpb.Chat) string {
	var b strings.Builder
	for _, m := range chat.GetMessages() {
		fmt.Fprintf(&b, "%s: %s\n", m.GetRole(), m.GetContent())
	}
	return b.String()
}

// vocabulary gives each word the next free id when it first meets it.
type vocabulary struct {
	mu    sync.Mutex
	ids   map[string]uint32
	words []string
}

func (v *vocabulary) encode(words []string) []uint32 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ids == nil {
		v.ids = make(map[string]uint32)
	}
	ids := make([]uint32, len(words))
	for i, word := range words {
		id, ok := v.ids[word]
		if !ok {
			v.words = append(v.words, word)
			id = uint32(len(v.words))
			v.ids[word] = id
		}
		ids[i] = id
	}
	return ids
}

func (v *vocabulary) decode(ids []uint32) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var b strings.Builder
	for _, id := range ids {
		if id == 0 || int(id) > len(v.words) {
			fmt.Fprintf(&b, "<%d>", id)
			continue
		}
		b.WriteString(v.words[id-1])
	}
	return b.String()
}

// logRequest logs a request that can be told from others.
func logRequest(traceID string) {
	if traceID != "" {
		fmt.Fprintf(os.Stderr, `{"level": "info", "logger": "fake", "msg": "request", "attrs": {"trace_id": %q}}`+"\n", traceID)
	}
}
