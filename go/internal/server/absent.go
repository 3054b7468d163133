package server

import (
	"net/http"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// absentRoutes are routes that clients of the three dialects know and this server leaves out for a reason. Each is
// answered with the reason, which a bare 404 would not give. docs/compatibility.md lists them.
var absentRoutes = []struct {
	pattern string
	err     error
}{
	{"POST /api/me", errCloud("there are no accounts here")},
	{"POST /api/signout", errCloud("there are no accounts here")},
	{"DELETE /api/user/keys/{key}", errCloud("there are no accounts here")},
	{"POST /api/experimental/web_search", errCloud("web search is a service of ollama.com")},
	{"POST /api/experimental/web_fetch", errCloud("web fetch is a service of ollama.com")},
	{"GET /api/experimental/model-recommendations", errCloud("model recommendations are a service of ollama.com")},
	{"POST /v1/audio/transcriptions", errAbsent("transcription", "the engine has no speech models")},
	{"POST /v1/audio/translations", errAbsent("translation of speech", "the engine has no speech models")},
	{"POST /v1/audio/speech", errAbsent("speech", "the engine has no speech models")},
	{"POST /v1/images/generations", errAbsent("image generation", "the engine has no image models")},
	{"POST /v1/images/edits", errAbsent("image editing", "the engine has no image models")},
	{"POST /v1/images/variations", errAbsent("image variation", "the engine has no image models")},
	{"GET /v1/responses/{id}", errStateless},
	{"DELETE /v1/responses/{id}", errStateless},
	{"POST /v1/responses/{id}/cancel", errStateless},
	{"GET /v1/responses/{id}/input_items", errStateless},
	{"POST /v1/responses/compact", errAbsent("compaction", "send a shorter conversation")},
	{"GET /v1/chat/completions/{id}", errStateless},
	{"POST /v1/conversations", errStateless},
	{"POST /v1/moderations", errAbsent("moderation", "ask a model that is made for it by way of /v1/chat/completions")},
	{"POST /v1/messages/batches", errAbsent("a batch of messages", "send them one by one; the server batches those that run at once")},
}

// errStateless answers questions for what other servers keep.
var errStateless = errAbsent("what other servers store", "answers are not kept; send the whole conversation in each request")

func errAbsent(what, why string) error {
	return errdefs.New(errdefs.ErrNotFound, "%s is not offered: %s", what, why)
}

// errCloud is the error of an Ollama whose user has switched the cloud off.
func errCloud(why string) error {
	return errdefs.New(errdefs.ErrForbidden, "ollama cloud is disabled: %s", why)
}

func (s *Server) addAbsentRoutes(mux *http.ServeMux) {
	for _, route := range absentRoutes {
		mux.HandleFunc(route.pattern, func(w http.ResponseWriter, r *http.Request) { s.failInDialect(w, r, route.err) })
	}
}
