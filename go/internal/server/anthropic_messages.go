package server

import (
	"net/http"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// anthropicRequestIDHeader is where Anthropic's clients look for the id that joins their log lines with the server's.
const anthropicRequestIDHeader = "Request-Id"

// handleMessages serves /v1/messages.
func (s *Server) handleMessages(w http.ResponseWriter, r *http.Request) {
	var q anthropicRequest
	req, a, m, err := s.readMessages(w, r, &q, true)
	if err != nil {
		s.failAnthropic(w, r, err)
		return
	}
	done, err := s.begin(r.Context(), m, nil, req, a)
	if err != nil {
		s.failAnthropic(w, r, err)
		return
	}
	defer done()
	if q.Stream {
		s.streamMessage(w, r, &q, a)
		return
	}
	s.writeMessage(w, r, &q, a)
}

// handleCountTokens serves /v1/messages/count_tokens: the prompt is rendered and tokenized as it would be for an answer.
func (s *Server) handleCountTokens(w http.ResponseWriter, r *http.Request) {
	var q anthropicRequest
	req, _, m, err := s.readMessages(w, r, &q, false)
	if err != nil {
		s.failAnthropic(w, r, err)
		return
	}
	tokens, err := s.countTokens(r.Context(), m, nil, req)
	if err != nil {
		s.failAnthropic(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, anthropicTokenCount{InputTokens: tokens})
}

// readMessages reads a request, finds its model and translates it.
func (s *Server) readMessages(w http.ResponseWriter, r *http.Request, q *anthropicRequest, answers bool) (*runnerpb.GenerateRequest, *answer, *store.Model, error) {
	w.Header().Set(anthropicRequestIDHeader, requestID(r.Context()))
	if err := s.readJSON(w, r, q); err != nil {
		return nil, nil, nil, misfit("", err)
	}
	switch {
	case q.Model == "":
		return nil, nil, nil, errModelRequired
	case answers && q.MaxTokens <= 0:
		return nil, nil, nil, errMaxTokensRequired
	case len(q.Messages) == 0:
		return nil, nil, nil, errMessagesRequired
	}
	m, err := s.lookup(q.Model)
	if err != nil {
		return nil, nil, nil, err
	}
	req, a, err := s.anthropicRequest(q, m)
	return req, a, m, err
}
