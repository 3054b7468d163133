package sched

import (
	"cmp"
	"sync"

	"github.com/ollmlx/ollmlx/go/internal/memory"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// ggufContext is the context of a GGUF model on a CPU where none is asked for.
const ggufContext = 4096

// maxNeeds bounds how many models' estimates are remembered.
const maxNeeds = 256

// NewMemory returns a Memory that reads the needs of models from their files in st, and asks the machine for the rest.
func NewMemory(st *store.Store, machine *memory.Machine) Memory {
	return &needs{Machine: machine, store: st, known: map[string]*mlxmodel.Info{}}
}

type needs struct {
	*memory.Machine
	store *store.Store

	mu    sync.Mutex
	known map[string]*mlxmodel.Info
}

// Need implements Memory.
func (n *needs) Need(m *store.Model) (memory.Need, error) {
	if kv := m.KVPerToken(); kv > 0 {
		need := memory.Stored(uint64(m.WeightSize()), n.Base(), n.Context())
		need.KVPerToken, need.KVFixed = kv, 0
		// Its caches are allocated at once, for the context that it is loaded with.
		need.Context = cmp.Or(uint64(m.Load.GetNumCtx()), need.Context, ggufContext)
		if longest := uint64(m.ContextLength); longest > 0 {
			need.Context = min(need.Context, longest)
		}
		return need, nil
	}
	if m.Format != store.FormatMLX {
		return memory.Stored(uint64(m.WeightSize()), n.Base(), n.Context()), nil
	}
	info, err := n.describe(m)
	if err != nil {
		return memory.Need{}, err
	}
	return memory.For(info, n.Device(), n.Base(), n.Context()), nil
}

// describe reads the headers of a model once.
func (n *needs) describe(m *store.Model) (*mlxmodel.Info, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if info := n.known[m.Digest]; info != nil {
		return info, nil
	}
	info, err := mlxmodel.Describe(n.store.Files(m))
	if err != nil {
		return nil, err
	}
	if len(n.known) >= maxNeeds {
		clear(n.known)
	}
	n.known[m.Digest] = info
	return info, nil
}
