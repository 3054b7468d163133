package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
)

// rerankRequest is the body of /v1/rerank, in the form that Cohere and Jina began and others took over. RawScores,
// Instruction, Truncate, Options and KeepAlive are no part of it.
type rerankRequest struct {
	Model           string            `json:"model"`
	Query           string            `json:"query"`
	Documents       []json.RawMessage `json:"documents"`
	TopN            *int              `json:"top_n"`
	ReturnDocuments bool              `json:"return_documents"`
	Truncate        *bool             `json:"truncate"`
	Instruction     string            `json:"instruction"`
	RawScores       bool              `json:"raw_scores"`
	Options         map[string]any    `json:"options"`
	KeepAlive       *api.Duration     `json:"keep_alive"`

	MaxTokensPerDoc json.RawMessage `json:"max_tokens_per_doc"`
	MaxChunksPerDoc json.RawMessage `json:"max_chunks_per_doc"`
	RankFields      json.RawMessage `json:"rank_fields"`
}

type rerankDocument struct {
	Text string `json:"text"`
}

type rerankResult struct {
	Index          int             `json:"index"`
	RelevanceScore float32         `json:"relevance_score"`
	Document       *rerankDocument `json:"document,omitempty"`
}

type rerankResponse struct {
	ID      string         `json:"id"`
	Object  string         `json:"object"`
	Model   string         `json:"model"`
	Results []rerankResult `json:"results"`
	Usage   struct {
		PromptTokens int `json:"prompt_tokens"`
		TotalTokens  int `json:"total_tokens"`
	} `json:"usage"`
}

// handleRerank orders documents by their relevance to a query, the most relevant first.
func (s *Server) handleRerank(w http.ResponseWriter, r *http.Request) {
	var q rerankRequest
	out, err := s.rerank(w, r, &q)
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *Server) rerank(w http.ResponseWriter, r *http.Request, q *rerankRequest) (*rerankResponse, error) {
	if err := s.readOpenAI(w, r, q); err != nil {
		return nil, err
	}
	texts, err := q.check()
	if err != nil {
		return nil, err
	}
	m, err := s.lookup(q.Model)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(m.Capabilities, mlxmodel.CapabilityRerank) {
		return nil, errdefs.New(errdefs.ErrUnsupported, "%q does not support rerank", q.Model)
	}
	_, numCtx, err := mergeOptions(s.log, m, q.Options)
	if err != nil {
		return nil, err
	}
	req := &runnerpb.RerankRequest{
		Query: q.Query, Documents: texts, Truncate: q.Truncate == nil || *q.Truncate, NumCtx: numCtx,
		Instruction: q.Instruction, RawScores: q.RawScores,
	}
	var resp *runnerpb.RerankResponse
	lease, _, err := s.withRunner(r.Context(), m, q.KeepAlive, func(g sched.Generator) (err error) {
		resp, err = g.Rerank(r.Context(), req)
		return err
	})
	if err != nil {
		return nil, err
	}
	lease.Release()
	if len(resp.GetScores()) != len(texts) {
		return nil, errdefs.New(errdefs.ErrInternal, "the runner returned %d scores for %d documents", len(resp.GetScores()), len(texts))
	}
	return q.response(texts, resp), nil
}

// check returns the texts of the documents.
func (q *rerankRequest) check() ([]string, error) {
	err := refuse([]refusedField{
		{"max_tokens_per_doc", q.MaxTokensPerDoc, "documents are cut where the context of the model ends; set options.num_ctx for less"},
		{"max_chunks_per_doc", q.MaxChunksPerDoc, "documents are not split; split them yourself"},
		{"rank_fields", q.RankFields, "a document is a text; join the fields that count"},
	})
	switch {
	case err != nil:
		return nil, err
	case q.Model == "":
		return nil, &fieldError{"model", errModelRequired}
	case q.Query == "":
		return nil, badField("query", "must not be empty")
	case len(q.Documents) == 0:
		return nil, badField("documents", "must not be empty")
	case q.TopN != nil && *q.TopN < 1:
		return nil, badField("top_n", "must be at least 1, got %d", *q.TopN)
	}
	texts := make([]string, len(q.Documents))
	for i, raw := range q.Documents {
		if texts[i], err = documentText(raw); err != nil {
			return nil, badField(fmt.Sprintf("documents[%d]", i), "%w", err)
		}
	}
	return texts, nil
}

// documentText reads a document: a text, or an object with one.
func documentText(raw json.RawMessage) (string, error) {
	var text *string
	if json.Unmarshal(raw, &text) == nil && text != nil {
		return *text, nil
	}
	var object struct{ Text *string }
	if json.Unmarshal(raw, &object) == nil && object.Text != nil {
		return *object.Text, nil
	}
	return "", errors.New(`must be a text, or an object with a "text"`)
}

func (q *rerankRequest) response(texts []string, resp *runnerpb.RerankResponse) *rerankResponse {
	out := &rerankResponse{ID: newOpenAIID("rerank-"), Object: "list", Model: q.Model, Results: make([]rerankResult, len(texts))}
	for i, score := range resp.GetScores() {
		out.Results[i] = rerankResult{Index: i, RelevanceScore: score}
		if q.ReturnDocuments {
			out.Results[i].Document = &rerankDocument{texts[i]}
		}
	}
	slices.SortStableFunc(out.Results, func(a, b rerankResult) int { return cmp.Compare(b.RelevanceScore, a.RelevanceScore) })
	if q.TopN != nil {
		out.Results = out.Results[:min(*q.TopN, len(out.Results))]
	}
	out.Usage.PromptTokens = int(resp.GetPromptTokens())
	out.Usage.TotalTokens = out.Usage.PromptTokens
	return out
}
