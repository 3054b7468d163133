package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// This file has what all dialects share on the way from their JSON to a runnerpb.GenerateRequest.

// lookup finds the model that a request names. It is the only way from a name to a model.
func (s *Server) lookup(name string) (*store.Model, error) {
	n, err := modelname.Parse(name)
	if err != nil {
		return nil, err
	}
	m, err := s.params.Store.Get(n)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, errNoModel(name)
	}
	return m, err
}

func errNoModel(name string) error {
	return errdefs.New(errdefs.ErrNotFound, "model '%s' not found", name)
}

var errModelRequired = errdefs.New(errdefs.ErrInvalid, "model is required")

// need is what a request demands of its model.
type need struct {
	name string
	// verb is what is asked of a model that generates text: "generate" or "chat".
	verb         string
	capabilities []model.Capability
}

// check returns Ollama's error for a model that lacks something.
func (n need) check(m *store.Model) error {
	if err := checkLocal(m); err != nil {
		return err
	}
	if !slices.Contains(m.Capabilities, model.CapabilityCompletion) {
		return errdefs.New(errdefs.ErrUnsupported, "%q does not support %s", n.name, n.verb)
	}
	var missing []string
	for _, c := range n.capabilities {
		if !slices.Contains(m.Capabilities, c) {
			missing = append(missing, string(c))
		}
	}
	if missing == nil {
		return nil
	}
	return errdefs.New(errdefs.ErrUnsupported, "%s does not support %s", m.Name, strings.Join(missing, "\n"))
}

// checkLocal refuses a model that is but the name of one that runs elsewhere, such as those of Ollama's cloud.
func checkLocal(m *store.Model) error {
	if host := m.Config.RemoteHost; host != "" {
		return errCloud(fmt.Sprintf("%s runs at %s, which this server does not ask", modelname.Display(m.Name), host))
	}
	return nil
}

// resolveThink returns whether and how a model is to think: a model that can does so unless the request says no.
func resolveThink(m *store.Model, name string, wish *thinkValue) (*runnerpb.Think, error) {
	if slices.Contains(m.Capabilities, model.CapabilityThinking) {
		if wish == nil || wish.unset {
			return &runnerpb.Think{Enabled: true}, nil
		}
		return &runnerpb.Think{Enabled: wish.enabled, Level: wish.level}, nil
	}
	if wish != nil && wish.enabled {
		return nil, errdefs.New(errdefs.ErrUnsupported, "%q does not support thinking", name)
	}
	return nil, nil
}

// thinkValue is a wish for thinking as the native API writes it: a boolean, a level, or null. The type in Ollama's own
// package does not know the level "max".
type thinkValue struct {
	unset   bool
	enabled bool
	level   string
}

const thinkChoices = `"high", "medium", "low", "max", true, or false`

func (t *thinkValue) UnmarshalJSON(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		t.unset = true
	case bool:
		t.enabled = v
	case string:
		if !slices.Contains([]string{"low", "medium", "high", "max"}, v) {
			return fmt.Errorf("invalid think value: %q (must be %s)", v, thinkChoices)
		}
		t.enabled, t.level = true, v
	default:
		return fmt.Errorf("think must be a boolean or string (%s)", thinkChoices)
	}
	return nil
}

// formatConstraint turns the native `format` into a constraint: nil for none.
func formatConstraint(format json.RawMessage) (*runnerpb.Constraint, error) {
	format = bytes.TrimSpace(format)
	switch string(format) {
	case "", "null", `""`:
		return nil, nil
	case `"json"`:
		return &runnerpb.Constraint{Grammar: &runnerpb.Constraint_JsonObject{JsonObject: true}}, nil
	}
	if format[0] != '{' {
		return nil, errdefs.New(errdefs.ErrInvalid, "invalid format: %q; expected \"json\" or a valid JSON Schema object", format)
	}
	return &runnerpb.Constraint{Grammar: &runnerpb.Constraint_JsonSchema{JsonSchema: string(format)}}, nil
}

// toolsFrom returns the tools of a request as the client wrote them, but for spaces.
func toolsFrom(raw []json.RawMessage) ([]*runnerpb.Tool, error) {
	type Tool struct {
		Type     string `json:"type"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	var out []*runnerpb.Tool
	for i, r := range raw {
		var t Tool
		if err := json.Unmarshal(r, &t); err != nil {
			return nil, errdefs.New(errdefs.ErrInvalid, "tools[%d]: %w", i, err)
		}
		if t.Function.Name == "" {
			return nil, errdefs.New(errdefs.ErrInvalid, "tools[%d]: function.name is missing", i)
		}
		var b bytes.Buffer
		if err := json.Compact(&b, r); err != nil {
			return nil, errdefs.New(errdefs.ErrInvalid, "tools[%d]: %w", i, err)
		}
		out = append(out, &runnerpb.Tool{Json: b.String()})
	}
	return out, nil
}

// templateTools returns tools in the form that a Modelfile template shows. It knows less of JSON Schema than there is.
func templateTools(tools []*runnerpb.Tool) ([]api.Tool, error) {
	out := make([]api.Tool, len(tools))
	for i, t := range tools {
		if err := json.Unmarshal([]byte(t.GetJson()), &out[i]); err != nil {
			return nil, errdefs.New(errdefs.ErrInvalid, "tools[%d]: %w", i, err)
		}
	}
	return out, nil
}

// behindModel is a request's conversation behind what the model brings itself.
func behindModel(m *store.Model, conversation []api.Message) []api.Message {
	if len(conversation) == 0 {
		return nil
	}
	var msgs []api.Message
	if m.System != "" && conversation[0].Role != "system" {
		msgs = append(msgs, api.Message{Role: "system", Content: m.System})
	}
	msgs = append(msgs, m.Messages...)
	return append(msgs, conversation...)
}

func messagesFrom(msgs []api.Message) []*runnerpb.Message {
	out := make([]*runnerpb.Message, 0, len(msgs))
	for _, m := range msgs {
		x := &runnerpb.Message{
			Role: m.Role, Content: m.Content, Thinking: m.Thinking,
			ToolCallId: m.ToolCallID, ToolName: m.ToolName, Images: imagesFrom(m.Images),
		}
		for i, c := range m.ToolCalls {
			x.ToolCalls = append(x.ToolCalls, &runnerpb.ToolCall{
				Id: c.ID, Name: c.Function.Name, ArgumentsJson: c.Function.Arguments.String(), Index: uint32(i),
			})
		}
		out = append(out, x)
	}
	return out
}

// imageTypes are the types of images that a runner reads.
var imageTypes = []string{"image/jpeg", "image/png", "image/webp"}

// checkImages refuses what is no image that a runner reads, whatever its request says that it is.
func checkImages(images []api.ImageData) error {
	for _, data := range images {
		if found := http.DetectContentType(data); !slices.Contains(imageTypes, found) {
			return errdefs.New(errdefs.ErrInvalid, "an image must be JPEG, PNG or WebP, got %s", found)
		}
	}
	return nil
}

func imagesFrom(images []api.ImageData) []*runnerpb.Image {
	var out []*runnerpb.Image
	for _, data := range images {
		out = append(out, &runnerpb.Image{Data: data})
	}
	return out
}

// prefilled reports whether the last message is the beginning of the answer.
func prefilled(msgs []api.Message) bool {
	if len(msgs) == 0 {
		return false
	}
	last := msgs[len(msgs)-1]
	return last.Role == "assistant" && len(last.ToolCalls) == 0
}

// tokensFrom checks the token ids of an earlier exchange.
func tokensFrom(context []int) ([]uint32, error) {
	out := make([]uint32, 0, len(context))
	for _, t := range context {
		if t < 0 || t > 1<<31 {
			return nil, errdefs.New(errdefs.ErrInvalid, "context: %d is not a token id", t)
		}
		out = append(out, uint32(t))
	}
	return out, nil
}

func checkTopLogprobs(n int) error {
	if n < 0 || n > 20 {
		return errdefs.New(errdefs.ErrInvalid, "top_logprobs must be between 0 and 20")
	}
	return nil
}
