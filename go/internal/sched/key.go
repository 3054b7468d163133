package sched

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/ollmlx/ollmlx/go/internal/store"
)

// hostLayers are the kinds of layers that only the host reads. Models that differ in nothing else, such as one that adds
// a system prompt to another, share a runner.
var hostLayers = []string{"template", "prompt", "system", "params", "messages", "license"}

const ollamaLayer = "application/vnd.ollama.image."

// runnerKey identifies the base model that a runner holds: all that a runner reads of m.
func runnerKey(m *store.Model) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	none := true
	adapter := m.Adapter() != nil
	for _, l := range m.Layers {
		kind, ok := strings.CutPrefix(l.MediaType, ollamaLayer)
		// An adapter that is put on for each request is not the base's.
		if ok && (slices.Contains(hostLayers, kind) || kind == "adapter" && adapter) {
			continue
		}
		none = false
		// Strings always encode, and a hash takes all.
		_ = enc.Encode([]string{l.MediaType, l.Name, l.Digest})
	}
	key := m.Digest
	if !none {
		key = hex.EncodeToString(h.Sum(nil))
	}
	if m.Load == nil {
		return key
	}
	// Fields that are equal have equal encodings within one program.
	load, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m.Load)
	return key + loadMark + hex.EncodeToString(load)
}

// loadMark is between the part of a key that names the model and the part that tells how it is loaded.
const loadMark = "-"

// baseKey is the part of a key that names the model.
func baseKey(key string) string {
	base, _, _ := strings.Cut(key, loadMark)
	return base
}
