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
	s               *Server
	model           *store.Model
	options         map[string]any
	format          json.RawMessage
	think           *runnerpb.Think
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

// conversation sets messages as the input: rendered here if the source says how, else by the runner.
func (b *builder) conversation(source prompt.Source, msgs []api.Message, tools []*runnerpb.Tool) (*runnerpb.GenerateRequest, *prompt.Parser, error) {
	form, err := prompt.New(source)
	if err != nil {
		return nil, nil, err
	}
	if form != nil {
		if err := b.checkToolChoice(form); err != nil {
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
		return b.rendered(form, prompt.Params{Messages: msgs, Tools: shown}, images)
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
func (b *builder) checkToolChoice(form *prompt.Form) error {
	switch b.toolChoice.GetMode() {
	case runnerpb.ToolChoice_MODE_REQUIRED, runnerpb.ToolChoice_MODE_NAMED:
		return errdefs.New(errdefs.ErrUnsupported, "%q cannot be made to call a tool, because its prompt comes from %s; leave the choice of tools to the model", b.model.Name, form)
	}
	return nil
}

// infilled sets a prompt and a suffix as the input: in the form of a template, or of the model's tokenizer if there is
// none.
func (b *builder) infilled(template, text, suffix string, images []api.ImageData) (*runnerpb.GenerateRequest, *prompt.Parser, error) {
	form, err := prompt.New(prompt.Source{Template: template})
	if err != nil {
		return nil, nil, err
	}
	if form == nil {
		return b.req, nil, b.text(text, suffix, images)
	}
	return b.rendered(form, prompt.Params{Prompt: text, Suffix: suffix}, images)
}

// rendered sets as the input what a form makes of p.
func (b *builder) rendered(form *prompt.Form, p prompt.Params, images []api.ImageData) (*runnerpb.GenerateRequest, *prompt.Parser, error) {
	if p.Suffix != "" && !form.Inserts() {
		return nil, nil, errdefs.New(errdefs.ErrUnsupported, "%s does not support insert", b.model.Name)
	}
	if b.think != nil {
		p.Think = &prompt.Think{Enabled: b.think.Enabled, Level: b.think.Level}
	}
	made, err := form.Render(p)
	if err != nil {
		return nil, nil, err
	}
	if b.req.Constraint != nil {
		// The runner does not know what of the answer will be taken for reasoning.
		b.req.Constraint.Reasoning = made.Reasoning
	}
	if err := b.text(made.Text, "", images); err != nil {
		return nil, nil, err
	}
	return b.req, made.Parser, nil
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
