package server

import (
	"net/http"
	"strings"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/store"
)

// showResponse is Ollama's, with wider details.
type showResponse struct {
	*api.ShowResponse
	Details modelDetails `json:"details"`
}

func (s *Server) handleShow(w http.ResponseWriter, r *http.Request) {
	var q struct {
		modelRef
		System  string         `json:"system"`
		Verbose bool           `json:"verbose"`
		Options map[string]any `json:"options"`
	}
	if err := s.readJSON(w, r, &q); err != nil {
		s.fail(w, r, err)
		return
	}
	name := q.name()
	if name == "" {
		s.fail(w, r, errModelRequired)
		return
	}
	m, err := s.lookup(name)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	resp, err := s.params.Store.Show(m, store.ShowOptions{Verbose: q.Verbose, System: q.System, Options: q.Options})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	// That editor shows the base name in its menu and expects the name that it asked for.
	if strings.HasPrefix(r.UserAgent(), "GitHubCopilotChat/") && resp.ModelInfo != nil {
		resp.ModelInfo["general.basename"] = name
	}
	writeJSON(w, http.StatusOK, showResponse{resp, detailsOf(m)})
}
