package registry

import (
	"sync"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/store"
)

// reporter tells a client how far layers have come: never backwards, and never from two goroutines at once.
type reporter struct {
	verb     string
	progress func(api.ProgressResponse)
	// total is not 0 if the layers are told as one, because there is one for each tensor.
	total int64
	// files names layers by their files and tells of the whole beside them.
	files *whole

	mu        sync.Mutex
	completed map[string]int64
	sum       int64
}

// whole is a model of several files.
type whole struct {
	name, digest string
	size         int64
}

func newReporter(verb string, layers []store.Layer, together bool, progress func(api.ProgressResponse)) *reporter {
	r := &reporter{verb: verb, progress: progress, completed: map[string]int64{}}
	if together {
		for _, l := range layers {
			r.total += l.Size
		}
	}
	return r
}

func (r *reporter) status(status string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress(api.ProgressResponse{Status: status})
}

// update tells that completed bytes of a layer are transferred.
func (r *reporter) update(l store.Layer, completed int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, known := r.completed[l.Digest]
	if completed <= before && known {
		return
	}
	r.completed[l.Digest] = completed
	r.sum += completed - before
	if r.total > 0 {
		r.progress(api.ProgressResponse{Status: r.verb + " model", Digest: "sha256:model", Total: r.total, Completed: r.sum})
		return
	}
	if r.files == nil {
		r.progress(api.ProgressResponse{Status: r.verb + " " + shortDigest(l.Digest), Digest: l.Digest, Total: l.Size, Completed: completed})
		return
	}
	r.progress(api.ProgressResponse{Status: r.verb + " " + l.Name, Digest: l.Digest, Total: l.Size, Completed: completed})
	r.progress(api.ProgressResponse{Status: r.verb + " " + r.files.name, Digest: r.files.digest, Total: r.files.size, Completed: r.sum})
}
