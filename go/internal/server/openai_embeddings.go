package server

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"net/http"
	"slices"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/openai"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

// embeddingsRequest is the body of /v1/embeddings. Options and KeepAlive are no part of OpenAI's API.
type embeddingsRequest struct {
	Model          string          `json:"model"`
	Input          json.RawMessage `json:"input"`
	Dimensions     *int            `json:"dimensions"`
	EncodingFormat string          `json:"encoding_format"`
	Options        map[string]any  `json:"options"`
	KeepAlive      *api.Duration   `json:"keep_alive"`
}

func (s *Server) handleOpenAIEmbeddings(w http.ResponseWriter, r *http.Request) {
	out, err := s.openaiEmbeddings(w, r)
	if err != nil {
		s.failOpenAI(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *Server) openaiEmbeddings(w http.ResponseWriter, r *http.Request) (*openai.EmbeddingList, error) {
	var q embeddingsRequest
	if err := s.readOpenAI(w, r, &q); err != nil {
		return nil, err
	}
	inputs, err := q.inputs()
	if err != nil {
		return nil, err
	}
	req := &runnerpb.EmbedRequest{Inputs: inputs, Truncate: true, Normalize: true}
	if q.Dimensions != nil {
		if *q.Dimensions < 1 || *q.Dimensions > math.MaxInt32 {
			return nil, badField("dimensions", "must be at least 1, got %d", *q.Dimensions)
		}
		req.Dimensions = uint32(*q.Dimensions)
	}
	encode, ok := map[string]func([]float32) any{
		"": plainVector, "float": plainVector, "base64": base64Vector,
	}[q.EncodingFormat]
	if !ok {
		return nil, badField("encoding_format", `must be "float" or "base64", got %q`, q.EncodingFormat)
	}
	if q.Model == "" {
		return nil, &fieldError{"model", errModelRequired}
	}
	m, err := s.lookupToEmbed(q.Model)
	if err != nil {
		return nil, err
	}
	resp, _, err := s.embed(r, m, q.Options, q.KeepAlive, req)
	if err != nil {
		return nil, err
	}
	out := &openai.EmbeddingList{Object: "list", Model: q.Model}
	for i, e := range resp.GetEmbeddings() {
		out.Data = append(out.Data, openai.Embedding{Object: "embedding", Index: i, Embedding: encode(e.GetValues())})
	}
	tokens := int(resp.GetPromptTokens())
	out.Usage = openai.EmbeddingUsage{PromptTokens: tokens, TotalTokens: tokens}
	return out, nil
}

// inputs are the texts of the request.
func (q *embeddingsRequest) inputs() ([]string, error) {
	var one string
	var many []string
	var ids []json.RawMessage
	switch {
	case len(q.Input) == 0 || string(q.Input) == "null":
		return nil, &fieldError{"input", errdefs.New(errdefs.ErrInvalid, "invalid input")}
	case json.Unmarshal(q.Input, &one) == nil:
		many = []string{one}
	case json.Unmarshal(q.Input, &ids) != nil:
		return nil, &fieldError{"input", errdefs.New(errdefs.ErrInvalid, "invalid input type")}
	case len(ids) == 0:
		return nil, &fieldError{"input", errdefs.New(errdefs.ErrInvalid, "invalid input")}
	case json.Unmarshal(q.Input, &many) != nil || hasNull(q.Input):
		return nil, unsupportedValue("input", " of token ids", "send text, because the ids of a client's tokenizer mean nothing to this model (langchain: check_embedding_ctx_length=False)")
	}
	// OpenAI has no vector for nothing, and neither has Ollama on this route.
	if slices.Contains(many, "") {
		return nil, &fieldError{"input", errdefs.New(errdefs.ErrInvalid, "invalid input: a text is empty")}
	}
	return many, nil
}

func plainVector(v []float32) any { return v }

// base64Vector is the vector's bytes, as OpenAI has them: little-endian 32 bit floats.
func base64Vector(v []float32) any {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(b)
}
