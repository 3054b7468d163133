package sched

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"google.golang.org/protobuf/proto"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runner"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// StarterParams says how NewStarter's starter runs models.
type StarterParams struct {
	// Store lays out a model's files for its runner.
	Store *store.Store
	// Runner has all that does not depend on the model; Engine and ModelName are filled in for each.
	Runner runner.Params
	// Load has all that does not depend on the model, for example the default context length. nil: nothing.
	Load *runnerpb.LoadRequest
	// GGUF has what goes over Load for GGUF models. nil: nothing.
	GGUF *runnerpb.LoadRequest
	// Spare has a runner that waits for a model. nil: each load starts one.
	Spare *SpareRunner
}

// EngineMLX is the engine of models in MLX format.
const EngineMLX = "mlx"

// engines tells which engine runs which format. The format is known from what a model holds, never from its name.
var engines = map[store.Format]string{
	store.FormatMLX:  EngineMLX,
	store.FormatGGUF: "gguf",
}

// NewStarter returns the starter of real runners: one process each, with the model's files laid out in a directory of
// its own inside the runtime directory.
func NewStarter(p StarterParams) Starter {
	log := p.Runner.Logger
	if log == nil {
		log = slog.Default()
	}
	return func(ctx context.Context, load Load, progress func(*runnerpb.LoadProgress)) (Instance, error) {
		m := load.Model
		name := modelname.Display(m.Name)
		engine, ok := engines[m.Format]
		if !ok {
			return nil, errdefs.New(errdefs.ErrUnsupported, "model %q holds %s weights, which this version cannot run; it runs models in MLX format and GGUF", name, m.Format)
		}
		if err := p.Runner.Dir.Ensure(); err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp(p.Runner.Dir.Path(), "model-")
		if err != nil {
			return nil, errdefs.New(errdefs.ErrInternal, "no directory for the files of model %q: %w", name, err)
		}
		inst, err := start(ctx, p, load, engine, dir, progress)
		if err != nil {
			if rmErr := os.RemoveAll(dir); rmErr != nil {
				log.Warn("sched: a model's directory remains", "model", name, "error", rmErr)
			}
			return nil, err
		}
		return inst, nil
	}
}

func start(ctx context.Context, p StarterParams, load Load, engine, dir string, progress func(*runnerpb.LoadProgress)) (Instance, error) {
	m := load.Model
	req, err := loadRequest(p, m, dir)
	if err != nil {
		return nil, err
	}
	rp := p.Runner
	rp.Engine, rp.ModelName = engine, modelname.Display(m.Name)
	r := p.Spare.take(ctx, engine)
	if r == nil {
		if r, err = runner.Start(ctx, rp); err != nil {
			return nil, err
		}
	}
	if plan := load.Plan; plan != nil {
		req.KvCacheBytes = plan.KV
		if engine == EngineMLX {
			req.WideWeights = &plan.Wide
		}
	}
	if _, err := r.Load(ctx, req, progress); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), DefaultStopTimeout)
		defer cancel()
		return nil, errors.Join(err, r.Stop(stop))
	}
	return &process{Runner: r, store: p.Store, dir: dir}, nil
}

// loadRequest lays out a model's files in dir and tells an engine how to load them.
func loadRequest(p StarterParams, m *store.Model, dir string) (*runnerpb.LoadRequest, error) {
	req := &runnerpb.LoadRequest{}
	if p.Load != nil {
		req = proto.CloneOf(p.Load)
	}
	req.ModelName, req.ModelDigest = modelname.Display(m.Name), runnerKey(m)
	if m.Format != store.FormatGGUF {
		path, err := p.Store.Materialize(m, dir)
		req.ModelPath = path
		return req, err
	}
	files, err := p.Store.MaterializeGGUF(m, dir)
	if err != nil {
		return nil, err
	}
	// Prefixes are kept in the memory of its runner only.
	req.CacheDir, req.CacheBytes = "", 0
	proto.Merge(req, p.GGUF)
	proto.Merge(req, m.Load)
	req.ModelPath, req.ProjectorPath, req.DraftModelPath = files.Model, files.Projector, files.Draft
	for _, a := range files.Adapters {
		req.Adapters = append(req.Adapters, &runnerpb.Adapter{Name: a.Digest, Path: a.Path})
	}
	return req, nil
}

// process is a runner with its model's directory.
type process struct {
	*runner.Runner
	store *store.Store
	dir   string
}

// Adapter lays the adapter's files out beside those of the base.
func (p *process) Adapter(m *store.Model) (*runnerpb.Adapter, error) {
	path, err := p.store.MaterializeAdapter(m, p.dir)
	if err != nil {
		return nil, err
	}
	return &runnerpb.Adapter{Name: m.Adapter().Key, Path: path}, nil
}

func (p *process) Generate(ctx context.Context, req *runnerpb.GenerateRequest) (Stream, error) {
	s, err := p.Runner.Generate(ctx, req)
	if err != nil {
		// A nil *runner.Stream in a Stream would not be nil.
		return nil, err
	}
	return s, nil
}

func (p *process) Stop(ctx context.Context) error {
	return errors.Join(p.Runner.Stop(ctx), os.RemoveAll(p.dir))
}

func (p *process) Held() uint64 { return memory.OfProcess(p.PID()) }
