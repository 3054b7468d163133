package server

import (
	"net/http"

	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// anthropicModel is a model in Anthropic's listing. What is not known of a model is null there.
type anthropicModel struct {
	Type           string `json:"type"`
	ID             string `json:"id"`
	DisplayName    string `json:"display_name"`
	CreatedAt      string `json:"created_at"`
	Lifecycle      string `json:"lifecycle"`
	MaxInputTokens *int   `json:"max_input_tokens"`
}

type anthropicModels struct {
	Data    []anthropicModel `json:"data"`
	HasMore bool             `json:"has_more"`
	FirstID *string          `json:"first_id"`
	LastID  *string          `json:"last_id"`
}

// asksAnthropic reports whether a request to a route that both dialects have comes from a client of Anthropic's.
func asksAnthropic(r *http.Request) bool { return r.Header.Get("Anthropic-Version") != "" }

func anthropicModelOf(id string, m *store.Model) anthropicModel {
	out := anthropicModel{
		Type: "model", ID: id, DisplayName: modelname.Display(m.Name), CreatedAt: m.ModifiedAt.UTC().Format("2006-01-02T15:04:05Z"), Lifecycle: "active",
	}
	if m.ContextLength > 0 {
		out.MaxInputTokens = &m.ContextLength
	}
	return out
}

// listAnthropicModels answers with all models at once, whatever page was asked for.
func (s *Server) listAnthropicModels(w http.ResponseWriter, r *http.Request, models []*store.Model, err error) {
	w.Header().Set(anthropicRequestIDHeader, requestID(r.Context()))
	if err != nil {
		s.failAnthropic(w, r, err)
		return
	}
	out := anthropicModels{Data: []anthropicModel{}}
	for _, m := range models {
		out.Data = append(out.Data, anthropicModelOf(modelname.Display(m.Name), m))
	}
	if n := len(out.Data); n > 0 {
		out.FirstID, out.LastID = &out.Data[0].ID, &out.Data[n-1].ID
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *Server) retrieveAnthropicModel(w http.ResponseWriter, r *http.Request, name string, m *store.Model, err error) {
	w.Header().Set(anthropicRequestIDHeader, requestID(r.Context()))
	if err != nil {
		s.failAnthropic(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, anthropicModelOf(name, m))
}
