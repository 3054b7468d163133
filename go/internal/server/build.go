package server

import (
	"context"
	"encoding/json"

	"github.com/ollama/ollama/api"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/sched"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// builder makes the runner's request of a native one. begin does what all forms of input share, then exactly one of
// conversation, rendered and text sets the input.
type builder struct {
	s       *Server
	model   *store.Model
	options map[string]any
	format  json.RawMessage
	think   *runnerpb.Think
	// thinkAsked: the wish to think is the request's own, not the default.
	thinkAsked      bool
	truncate, shift *bool
	logprobs        bool
	topLogprobs     int
	// toolChoice is what the request demands of the tools; nil leaves them to the model.
	toolChoice *runnerpb.ToolChoice
	// context is the token ids of an earlier exchange.
	context []uint32

	req *runnerpb.GenerateRequest
}

func (b *builder) begin() error {
	opts, numCtx, err := mergeOptions(b.s.log, b.model, b.options)
	if err != nil {
		return err
	}
	constraint, err := formatConstraint(b.format)
	if err != nil {
		return err
	}
	b.req = &runnerpb.GenerateRequest{
		Options:    opts,
		NumCtx:     numCtx,
		Constraint: constraint,
		Truncate:   b.truncate == nil || *b.truncate,
		Shift:      b.shift == nil || *b.shift,
		Logprobs:   b.logprobs,
	}
	if b.logprobs {
		b.req.TopLogprobs = uint32(b.topLogprobs)
	}
	return nil
}

// conversation sets messages as the input: rendered here with a template if there is one, else by the runner.
func (b *builder) conversation(template string, msgs []api.Message, tools []*runnerpb.Tool) (*runnerpb.GenerateRequest, *prompt.Parser, error) {
	if template != "" {
		if err := b.checkToolChoice(); err != nil {
			return nil, nil, err
		}
		if b.toolChoice.GetMode() == runnerpb.ToolChoice_MODE_NONE {
			tools = nil
		}
		shown, err := templateTools(tools)
		if err != nil {
			return nil, nil, err
		}
		var images []api.ImageData
		for _, m := range msgs {
			images = append(images, m.Images...)
		}
		return b.rendered(template, prompt.Params{Messages: msgs, Tools: shown}, images)
	}
	for _, m := range msgs {
		if err := checkImages(m.Images); err != nil {
			return nil, nil, err
		}
	}
	b.req.Input = &runnerpb.GenerateRequest_Chat{Chat: &runnerpb.Chat{
		Messages:             messagesFrom(msgs),
		Tools:                tools,
		ToolChoice:           b.toolChoice,
		Think:                b.think,
		ContinueFinalMessage: prefilled(msgs),
		Context:              b.context,
	}}
	return b.req, nil, nil
}

// checkToolChoice refuses what only the runner can do, which knows the form of the calls that it parses.
func (b *builder) checkToolChoice() error {
	switch b.toolChoice.GetMode() {
	case runnerpb.ToolChoice_MODE_REQUIRED, runnerpb.ToolChoice_MODE_NAMED:
		return errdefs.New(errdefs.ErrUnsupported, "%q cannot be made to call a tool, because its prompt comes from a Modelfile TEMPLATE; leave the choice of tools to the model", b.model.Name)
	}
	return nil
}

// rendered sets as the input what a template makes of p.
func (b *builder) rendered(template string, p prompt.Params, images []api.ImageData) (*runnerpb.GenerateRequest, *prompt.Parser, error) {
	tmpl, err := prompt.Parse(template)
	if err != nil {
		return nil, nil, err
	}
	if p.Suffix != "" && !tmpl.Inserts() {
		return nil, nil, errdefs.New(errdefs.ErrUnsupported, "%s does not support insert", b.model.Name)
	}
	if b.think != nil {
		p.Think = &prompt.Think{Enabled: b.think.Enabled, Level: b.think.Level}
	}
	// A grammar binds a rendered prompt's answer from its first token, so there is no room for reasoning before it.
	if b.req.Constraint != nil && p.Think != nil && p.Think.Enabled && tmpl.Thinks() {
		if b.thinkAsked {
			return nil, nil, errdefs.New(errdefs.ErrUnsupported, "%q cannot think and follow a format at once, because its prompt comes from a Modelfile TEMPLATE; set think to false", b.model.Name)
		}
		p.Think.Enabled = false
	}
	text, err := tmpl.Render(p)
	if err != nil {
		return nil, nil, err
	}
	if err := b.text(text, "", images); err != nil {
		return nil, nil, err
	}
	return b.req, tmpl.Parser(text, p), nil
}

// text sets text that needs no rendering as the input.
func (b *builder) text(text, suffix string, images []api.ImageData) error {
	if err := checkImages(images); err != nil {
		return err
	}
	p := &runnerpb.Prompt{Text: text, Context: b.context, Images: imagesFrom(images)}
	if suffix != "" {
		p.Suffix = &suffix
	}
	b.req.Input = &runnerpb.GenerateRequest_Prompt{Prompt: p}
	return nil
}

// renderOnly asks the runner for the text that it would continue.
func renderOnly(ctx context.Context, g sched.Generator, req *runnerpb.GenerateRequest) (*api.DebugInfo, error) {
	resp, err := g.Tokenize(ctx, tokenizeRequest(req))
	if err != nil {
		return nil, err
	}
	images := len(req.GetPrompt().GetImages())
	for _, m := range req.GetChat().GetMessages() {
		images += len(m.GetImages())
	}
	return &api.DebugInfo{RenderedTemplate: resp.GetRendered(), ImageCount: images}, nil
}

// countTokens returns how many tokens the prompt of req has, rendered and tokenized as it would be for an answer.
func (s *Server) countTokens(ctx context.Context, m *store.Model, keepAlive *api.Duration, req *runnerpb.GenerateRequest) (int, error) {
	var resp *runnerpb.TokenizeResponse
	lease, _, err := s.withRunner(ctx, m, keepAlive, func(g sched.Generator) (err error) {
		resp, err = g.Tokenize(ctx, tokenizeRequest(req))
		return err
	})
	if err != nil {
		return 0, err
	}
	lease.Release()
	return len(resp.GetTokens()), nil
}

// tokenizeRequest asks for the tokens of the prompt of req.
func tokenizeRequest(req *runnerpb.GenerateRequest) *runnerpb.TokenizeRequest {
	if chat := req.GetChat(); chat != nil {
		return &runnerpb.TokenizeRequest{Input: &runnerpb.TokenizeRequest_Chat{Chat: chat}}
	}
	return &runnerpb.TokenizeRequest{Input: &runnerpb.TokenizeRequest_Prompt{Prompt: req.GetPrompt()}}
}
