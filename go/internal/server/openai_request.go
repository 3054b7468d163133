package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/openai"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// openaiSampling are the fields on sampling that all OpenAI routes take. The last four are no part of OpenAI's API:
// they let its clients reach, as extra body fields, what the native API can do.
type openaiSampling struct {
	Temperature      *float64           `json:"temperature"`
	TopP             *float64           `json:"top_p"`
	FrequencyPenalty *float64           `json:"frequency_penalty"`
	PresencePenalty  *float64           `json:"presence_penalty"`
	Seed             *int64             `json:"seed"`
	Stop             json.RawMessage    `json:"stop"`
	LogitBias        map[string]float64 `json:"logit_bias"`

	TopK      *int64         `json:"top_k"`
	MinP      *float64       `json:"min_p"`
	Options   map[string]any `json:"options"`
	KeepAlive *api.Duration  `json:"keep_alive"`
}

// nativeOptions returns the options in the native form. OpenAI's own defaults for temperature and top_p go over the
// model's parameters, as in Ollama, because clients of this API rely on them.
func (q *openaiSampling) nativeOptions(maxField string, maxTokens *int64) (map[string]any, error) {
	o := map[string]any{"temperature": 1.0, "top_p": 1.0}
	maps.Copy(o, q.Options)
	for name, v := range map[string]*float64{
		"temperature": q.Temperature, "top_p": q.TopP, "min_p": q.MinP,
		"frequency_penalty": q.FrequencyPenalty, "presence_penalty": q.PresencePenalty,
	} {
		if v != nil {
			o[name] = *v
		}
	}
	for name, v := range map[string]*int64{"seed": q.Seed, "top_k": q.TopK} {
		if v != nil {
			o[name] = *v
		}
	}
	if maxTokens != nil {
		if *maxTokens == 0 {
			return nil, badField(maxField, "must be at least 1, or negative for no bound")
		}
		o["num_predict"] = *maxTokens
	}
	stop, err := openaiStop(q.Stop)
	if stop != nil {
		o["stop"] = stop
	}
	return o, err
}

// openaiStop reads a stop string or a list of them, in the form of a native option; nil for none.
func openaiStop(raw json.RawMessage) ([]any, error) {
	var one string
	var many []string
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return nil, nil
	case json.Unmarshal(raw, &one) == nil:
		many = []string{one}
	case json.Unmarshal(raw, &many) != nil || hasNull(raw):
		return nil, badField("stop", "must be a string or a list of strings")
	}
	out := []any{}
	for _, s := range many {
		out = append(out, s)
	}
	return out, nil
}

// logitBias returns the bias by token id.
func (q *openaiSampling) logitBias() (map[uint32]float32, error) {
	if len(q.LogitBias) == 0 {
		return nil, nil
	}
	out := make(map[uint32]float32, len(q.LogitBias))
	for key, v := range q.LogitBias {
		id, err := strconv.ParseUint(key, 10, 32)
		if err != nil {
			return nil, badField("logit_bias", "has the key %q, which is not a token id", key)
		}
		if v < -100 || v > 100 {
			return nil, badField("logit_bias", "of token %d must be between -100 and 100, got %v", id, v)
		}
		out[uint32(id)] = float32(v)
	}
	return out, nil
}

// openaiWork is a request of this dialect as far as chat and responses agree.
type openaiWork struct {
	model    string
	sampling *openaiSampling
	// maxField names the field that maxTokens came from.
	maxField  string
	maxTokens *int64
	messages  []api.Message
	format    json.RawMessage
	// effort is how hard to think, and effortField names where that was said.
	effort, effortField string
	tools               []json.RawMessage
	// choice is nil if the model decides on the use of tools.
	choice      *runnerpb.ToolChoice
	truncate    *bool
	logprobs    bool
	topLogprobs int
}

// beginOpenAI has a runner work on x. The caller reads the answer and calls done, as after begin.
func (s *Server) beginOpenAI(ctx context.Context, x *openaiWork, keepAlive *api.Duration) (a *answer, done func(), err error) {
	m, err := s.lookup(x.model)
	if err != nil {
		return nil, nil, err
	}
	req, a, err := s.openaiRequest(x, m)
	if err != nil {
		return nil, nil, err
	}
	done, err = s.begin(ctx, m, keepAlive, req, a)
	return a, done, err
}

// openaiRequest translates x for m, and returns how its answer is to be read.
func (s *Server) openaiRequest(x *openaiWork, m *store.Model) (*runnerpb.GenerateRequest, *answer, error) {
	need := need{name: x.model, verb: "chat"}
	if len(x.tools) > 0 {
		need.capabilities = append(need.capabilities, model.CapabilityTools)
	}
	if slices.ContainsFunc(x.messages, func(m api.Message) bool { return len(m.Images) > 0 }) {
		need.capabilities = append(need.capabilities, model.CapabilityVision)
	}
	if err := need.check(m); err != nil {
		return nil, nil, err
	}
	wish, err := openaiThink(x.effortField, x.effort)
	if err != nil {
		return nil, nil, err
	}
	think, err := resolveThink(m, x.model, wish)
	if err != nil {
		return nil, nil, err
	}
	tools, err := toolsFrom(x.tools)
	if err != nil {
		return nil, nil, err
	}
	options, err := x.sampling.nativeOptions(x.maxField, x.maxTokens)
	if err != nil {
		return nil, nil, err
	}
	b := builder{s: s, model: m, options: options, format: x.format, think: think,
		truncate: x.truncate, logprobs: x.logprobs, topLogprobs: x.topLogprobs, toolChoice: x.choice}
	if forced(x.choice) {
		// The answer is a call, which has a form of its own.
		b.format = nil
	}
	if err := b.begin(); err != nil {
		return nil, nil, err
	}
	if b.req.Options.LogitBias, err = x.sampling.logitBias(); err != nil {
		return nil, nil, err
	}
	req, parser, err := b.conversation(m.Prompt(), behindModel(m, x.messages), tools)
	if err != nil {
		return nil, nil, err
	}
	return req, &answer{parser: parser, single: x.choice.GetSingle()}, nil
}

// openaiEfforts are the native levels of thinking that OpenAI's efforts stand for.
var openaiEfforts = map[string]string{
	"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "ultra": "max", "max": "max",
}

// openaiThink returns the wish to think that an effort stands for; nil for none.
func openaiThink(field, effort string) (*thinkValue, error) {
	switch effort {
	case "":
		return nil, nil
	case "none":
		return &thinkValue{}, nil
	}
	level, ok := openaiEfforts[effort]
	if !ok {
		return nil, badField(field, `must be "none", "minimal", "low", "medium", "high", "xhigh", "ultra" or "max", got %q`, effort)
	}
	return &thinkValue{enabled: true, level: level}, nil
}

// openaiFormat is response_format, and text.format of the responses route, which has the schema one level higher.
type openaiFormat struct {
	Type       string          `json:"type"`
	Schema     json.RawMessage `json:"schema"`
	JSONSchema *struct {
		Schema json.RawMessage `json:"schema"`
	} `json:"json_schema"`
}

// native returns the native format; nil for none.
func (f *openaiFormat) native(field string) (json.RawMessage, error) {
	if f == nil {
		return nil, nil
	}
	schema, schemaField := f.Schema, field+".schema"
	if f.JSONSchema != nil {
		schema, schemaField = f.JSONSchema.Schema, field+".json_schema.schema"
	}
	switch f.Type {
	case "text":
		return nil, nil
	case "json_object":
		return json.RawMessage(`"json"`), nil
	case "json_schema":
		if !bytes.HasPrefix(bytes.TrimSpace(schema), []byte("{")) {
			return nil, badField(schemaField, "must be a JSON Schema object")
		}
		return schema, nil
	}
	return nil, badField(field+".type", `must be "text", "json_object" or "json_schema", got %q`, f.Type)
}

// openaiChoice reads tool_choice and parallel_tool_calls; nil if they leave everything to the model.
func openaiChoice(raw json.RawMessage, parallel *bool, tools []json.RawMessage) (*runnerpb.ToolChoice, error) {
	choice := &runnerpb.ToolChoice{Single: parallel != nil && !*parallel}
	if err := readChoice(raw, choice); err != nil {
		return nil, err
	}
	if forced(choice) && len(tools) == 0 {
		return nil, badField("tool_choice", "demands a call, but tools is empty")
	}
	if choice.Mode == runnerpb.ToolChoice_MODE_NAMED && !slices.ContainsFunc(tools, func(t json.RawMessage) bool { return toolName(t) == choice.Name }) {
		return nil, badField("tool_choice", "names the function %q, which is not among the tools", choice.Name)
	}
	if choice.Mode == runnerpb.ToolChoice_MODE_AUTO && !choice.Single {
		return nil, nil
	}
	return choice, nil
}

func readChoice(raw json.RawMessage, choice *runnerpb.ToolChoice) error {
	var mode string
	if len(raw) == 0 || json.Unmarshal(raw, &mode) == nil {
		switch mode {
		case "", "auto":
		case "none":
			choice.Mode = runnerpb.ToolChoice_MODE_NONE
		case "required":
			choice.Mode = runnerpb.ToolChoice_MODE_REQUIRED
		default:
			return badField("tool_choice", `must be "none", "auto", "required" or name a function, got %q`, mode)
		}
		return nil
	}
	// The chat route has the name in "function", the responses route beside the type.
	var named struct {
		Type     string `json:"type"`
		Name     string `json:"name"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	if json.Unmarshal(raw, &named) != nil {
		return badField("tool_choice", "must be a string or name a function")
	}
	if named.Type != "function" {
		return unsupportedValue("tool_choice", fmt.Sprintf(" of type %q", named.Type), `use "none", "auto", "required" or name a function`)
	}
	choice.Mode, choice.Name = runnerpb.ToolChoice_MODE_NAMED, named.Function.Name
	if choice.Name == "" {
		choice.Name = named.Name
	}
	return nil
}

// forced reports whether choice makes the model call a tool.
func forced(choice *runnerpb.ToolChoice) bool {
	m := choice.GetMode()
	return m == runnerpb.ToolChoice_MODE_REQUIRED || m == runnerpb.ToolChoice_MODE_NAMED
}

// toolName returns the name in a tool's definition.
func toolName(tool json.RawMessage) string {
	var t struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	_ = json.Unmarshal(tool, &t)
	return t.Function.Name
}

// openaiPart is a part of a message's content in any of the forms of the chat and the responses route.
type openaiPart struct {
	Type     string          `json:"type"`
	Text     string          `json:"text"`
	Refusal  string          `json:"refusal"`
	ImageURL json.RawMessage `json:"image_url"`
}

// openaiContent reads the content of a message: a string, or parts. Texts of several parts are joined by a line break.
// at is where the content stands in the request.
func openaiContent(at string, raw json.RawMessage) (string, []api.ImageData, error) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text, nil, nil
	}
	var parts []openaiPart
	if err := json.Unmarshal(raw, &parts); err != nil {
		return "", nil, badField(at, "must be a string or a list of parts: %w", err)
	}
	var texts []string
	var images []api.ImageData
	for i, p := range parts {
		at := fmt.Sprintf("%s[%d]", at, i)
		switch p.Type {
		case "text", "input_text", "output_text":
			texts = append(texts, p.Text)
		case "refusal":
			texts = append(texts, p.Refusal)
		case "image_url", "input_image":
			image, err := openaiImage(at, p.ImageURL)
			if err != nil {
				return "", nil, err
			}
			images = append(images, image)
		default:
			return "", nil, unsupportedValue(at, fmt.Sprintf(" of type %q", p.Type), "a part can be text or an image")
		}
	}
	return strings.Join(texts, "\n"), images, nil
}

// openaiImage decodes a data URL. Others are refused: the server fetches nothing that a request names.
func openaiImage(at string, raw json.RawMessage) (api.ImageData, error) {
	var object struct {
		URL string `json:"url"`
	}
	var url string
	if present(raw) && json.Unmarshal(raw, &url) != nil {
		if json.Unmarshal(raw, &object) != nil {
			return nil, badField(at+".image_url", "must be a data URL")
		}
		url = object.URL
	}
	if url == "" {
		return nil, badField(at+".image_url", "must be a data URL; files by id are not kept here")
	}
	if !strings.HasPrefix(url, "data:") {
		return nil, badField(at+".image_url", "must be a data URL, for example \"data:image/png;base64,...\": images are not fetched from addresses")
	}
	kind, data, ok := strings.Cut(strings.TrimPrefix(url, "data:"), ";base64,")
	if !ok || (kind != "" && kind != "image/jpg" && !slices.Contains(imageTypes, kind)) {
		return nil, badField(at+".image_url", "must hold a JPEG, PNG or WebP image in base64")
	}
	image, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, badField(at+".image_url", "is not valid base64")
	}
	return image, nil
}

// openaiRole maps a role to the one that templates know.
func openaiRole(role string) string {
	if role = strings.ToLower(role); role == "developer" {
		return "system"
	}
	return role
}

// openaiCall reads a call in an assistant's earlier message.
func openaiCall(at string, c openai.ToolCall) (api.ToolCall, error) {
	call := api.ToolCall{ID: c.ID}
	call.Function.Name = c.Function.Name
	if c.Function.Name == "" {
		return call, badField(at, "has no function name")
	}
	if c.Function.Arguments == "" {
		return call, nil
	}
	if err := json.Unmarshal([]byte(c.Function.Arguments), &call.Function.Arguments); err != nil {
		return call, badField(at, "has arguments that are not a JSON object: %w", err)
	}
	return call, nil
}

// nameTools sets the tool names of tool messages, which OpenAI leaves out, from the calls that they answer.
func nameTools(msgs []api.Message) {
	names := map[string]string{}
	for i := range msgs {
		for _, c := range msgs[i].ToolCalls {
			names[c.ID] = c.Function.Name
		}
		if m := &msgs[i]; m.Role == "tool" && m.ToolName == "" {
			m.ToolName = names[m.ToolCallID]
		}
	}
}
