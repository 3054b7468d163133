package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"
	"github.com/spf13/cobra"
)

// demoModel is what `run` runs when no model is named: the one that comes with the program.
const demoModel = "demo"

// runOptions is what a conversation is held with.
type runOptions struct {
	Model        string
	Prompt       string
	Images       []api.ImageData
	Messages     []api.Message // the conversation so far, without a system message set by hand
	System       string
	Format       json.RawMessage
	Options      map[string]any
	KeepAlive    *api.Duration
	Think        *api.ThinkValue
	HideThinking bool
	WordWrap     bool
	Verbose      bool
	Insecure     bool
	Truncate     *bool
	Dimensions   int
}

func (a *app) runCommand() *cobra.Command {
	var (
		opts      = runOptions{Options: map[string]any{}}
		format    string
		keepAlive string
		think     string
		noWrap    bool
		truncate  bool
	)
	cmd := &cobra.Command{
		Use:   "run [MODEL] [PROMPT...]",
		Short: "Run a model",
		Long: "Run a model: with a prompt, print the answer; without one, hold a conversation.\n\n" +
			"Without MODEL the bundled demonstration model is run. Text piped in stands before the prompt.\n" +
			"If no server listens on this machine, one is started until the command ends.",
		ValidArgsFunction: a.completeModels(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if opts.Format, err = parseFormat(format); err != nil {
				return err
			}
			if opts.KeepAlive, err = parseKeepAlive(keepAlive); err != nil {
				return err
			}
			if cmd.Flags().Changed("think") {
				if opts.Think, err = parseThink(think); err != nil {
					return err
				}
			}
			if cmd.Flags().Changed("truncate") {
				opts.Truncate = &truncate
			}
			opts.WordWrap = !noWrap && a.outTTY
			opts.Model = demoModel
			if len(args) > 0 {
				opts.Model, args = args[0], args[1:]
			}
			return a.run(cmd.Context(), opts, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&keepAlive, "keepalive", "", "how long to keep the model loaded (e.g. 5m)")
	flags.BoolVar(&opts.Verbose, "verbose", false, "show timings of the answer")
	flags.BoolVar(&opts.Insecure, "insecure", false, "use an insecure registry")
	flags.BoolVar(&noWrap, "nowordwrap", false, "don't wrap words to the next line automatically")
	flags.StringVar(&format, "format", "", "form of the answer: json, or a JSON schema")
	flags.StringVar(&think, "think", "", "thinking mode: true, false, low, medium, high or max")
	flags.Lookup("think").NoOptDefVal = "true"
	flags.BoolVar(&opts.HideThinking, "hidethinking", false, "hide thinking output")
	flags.BoolVar(&truncate, "truncate", false, "for embedding models: cut inputs that exceed the context length (set to false for an error)")
	flags.IntVar(&opts.Dimensions, "dimensions", 0, "for embedding models: cut the output to this many dimensions")
	return cmd
}

func parseFormat(value string) (json.RawMessage, error) {
	switch {
	case value == "":
		return nil, nil
	case value == "json":
		return json.RawMessage(`"json"`), nil
	case !json.Valid([]byte(value)):
		return nil, fmt.Errorf("invalid value for --format: %q (must be json or a JSON schema)", value)
	}
	return json.RawMessage(value), nil
}

func parseKeepAlive(value string) (*api.Duration, error) {
	if value == "" {
		return nil, nil
	}
	// A bare number is seconds, as everywhere else.
	var d api.Duration
	if json.Unmarshal([]byte(value), &d) == nil {
		return &d, nil
	}
	parsed, err := time.ParseDuration(value)
	if err != nil {
		return nil, fmt.Errorf("invalid value for --keepalive: %q (must be a duration such as 5m, or seconds)", value)
	}
	return &api.Duration{Duration: parsed}, nil
}

func parseThink(value string) (*api.ThinkValue, error) {
	switch value {
	case "", "true":
		return &api.ThinkValue{Value: true}, nil
	case "false":
		return &api.ThinkValue{Value: false}, nil
	case "low", "medium", "high", "max":
		return &api.ThinkValue{Value: value}, nil
	}
	return nil, fmt.Errorf("invalid value for --think: %q (must be true, false, low, medium, high or max)", value)
}

// run answers one prompt or holds a conversation, on a server that it starts itself if need be.
func (a *app) run(ctx context.Context, opts runOptions, prompts []string) (err error) {
	setup, release := interruptible(ctx)
	defer release()
	conversing := false
	defer func() {
		if err != nil && !conversing && setup.Err() != nil {
			err = errInterrupted
		}
	}()

	interactive := a.inTTY && a.outTTY && len(prompts) == 0
	if !a.inTTY {
		piped, err := io.ReadAll(a.in)
		if err != nil {
			return fmt.Errorf("reading standard input: %w", err)
		}
		if len(piped) > 0 {
			prompts = append([]string{string(piped)}, prompts...)
		}
	}
	opts.Prompt = strings.Join(prompts, " ")

	client, stop, err := a.connectOrStart(setup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()

	info, err := a.showOrPull(setup, client, &opts)
	if err != nil {
		return err
	}
	if slices.Contains(info.Capabilities, model.CapabilityEmbedding) && !slices.Contains(info.Capabilities, model.CapabilityCompletion) {
		return a.embed(setup, client, &opts)
	}
	if !interactive {
		if takesImages(info) {
			if opts.Prompt, opts.Images, err = a.withImages(opts.Prompt); err != nil {
				return err
			}
		}
		return a.generate(setup, client, &opts)
	}
	if err := a.load(setup, client, &opts); err != nil {
		return err
	}
	// In a conversation Ctrl-C ends an answer and not the command.
	conversing = true
	release()
	return a.converse(ctx, client, opts, info)
}

// showOrPull describes the model, which is pulled first if the server does not have it.
func (a *app) showOrPull(ctx context.Context, client *api.Client, opts *runOptions) (*api.ShowResponse, error) {
	info, err := client.Show(ctx, &api.ShowRequest{Model: opts.Model})
	if !isStatus(err, http.StatusNotFound) {
		return info, err
	}
	if err := a.pull(ctx, client, &api.PullRequest{Model: opts.Model, Insecure: opts.Insecure}); err != nil {
		return nil, err
	}
	return client.Show(ctx, &api.ShowRequest{Model: opts.Model})
}

// load brings the model into memory, so that a conversation's first answer does not wait for it.
func (a *app) load(ctx context.Context, client *api.Client, opts *runOptions) error {
	p := a.newProgress()
	p.say("loading " + opts.Model)
	ctx, done := loading(ctx, p, opts.Model)
	defer p.clear()
	defer done()
	req := &api.GenerateRequest{Model: opts.Model, KeepAlive: opts.KeepAlive, Think: opts.Think}
	return client.Generate(ctx, req, func(api.GenerateResponse) error { return nil })
}

// waiting shows a spinner until the answer begins, and a bar while its model is loaded; done takes it away, more than
// once without harm.
func (a *app) waiting(ctx context.Context, model string) (_ context.Context, done func()) {
	if !a.errTTY {
		return ctx, func() {}
	}
	p := a.newProgress()
	p.say(" ")
	ctx, loaded := loading(ctx, p, model)
	return ctx, func() {
		loaded()
		p.clear()
	}
}

// generate answers opts.Prompt, or only loads the model if that is empty.
func (a *app) generate(ctx context.Context, client *api.Client, opts *runOptions) error {
	ctx, done := a.waiting(ctx, opts.Model)
	defer done()
	answer := a.newAnswer(opts, done)
	var last api.GenerateResponse
	err := client.Generate(ctx, &api.GenerateRequest{
		Model:     opts.Model,
		Prompt:    opts.Prompt,
		Images:    opts.Images,
		System:    opts.System,
		Format:    opts.Format,
		Options:   opts.Options,
		KeepAlive: opts.KeepAlive,
		Think:     opts.Think,
	}, func(r api.GenerateResponse) error {
		last = r
		answer.add(r.Thinking, r.Response, r.ToolCalls)
		return nil
	})
	answer.end()
	if opts.Prompt != "" && (err == nil || answer.started) {
		fmt.Fprint(a.out, "\n")
		if err == nil {
			fmt.Fprint(a.out, "\n")
		}
	}
	if err != nil {
		return err
	}
	if !last.Done {
		return errors.New("the server ended the answer before it was complete")
	}
	if opts.Verbose {
		writeMetrics(a.err, last.Metrics)
	}
	return nil
}

// embed prints the vector of the prompt.
func (a *app) embed(ctx context.Context, client *api.Client, opts *runOptions) error {
	if opts.Prompt == "" {
		return fmt.Errorf("embedding models require input text. Usage: ollmlx run %s \"your text here\"", opts.Model)
	}
	resp, err := client.Embed(ctx, &api.EmbedRequest{
		Model:      opts.Model,
		Input:      opts.Prompt,
		KeepAlive:  opts.KeepAlive,
		Truncate:   opts.Truncate,
		Dimensions: opts.Dimensions,
	})
	if err != nil {
		return err
	}
	if len(resp.Embeddings) == 0 {
		return errors.New("no embeddings returned")
	}
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(resp.Embeddings[0]); err != nil {
		return err
	}
	_, err = buf.WriteTo(a.out)
	return err
}

// writeMetrics prints the timings of an answer in the form that Ollama's users know.
func writeMetrics(w io.Writer, m api.Metrics) {
	rate := func(count int, d time.Duration) string {
		return fmt.Sprintf("%.2f tokens/s", float64(count)/d.Seconds())
	}
	line := func(show bool, label string, value any) {
		if show {
			fmt.Fprintf(w, "%-21s %v\n", label+":", value)
		}
	}
	line(m.TotalDuration > 0, "total duration", m.TotalDuration)
	line(m.LoadDuration > 0, "load duration", m.LoadDuration)
	line(m.PromptEvalCount > 0, "prompt eval count", fmt.Sprintf("%d token(s)", m.PromptEvalCount))
	if m.PromptEvalDuration > 0 {
		line(true, "prompt eval duration", m.PromptEvalDuration)
		line(true, "prompt eval rate", rate(m.PromptEvalCount, m.PromptEvalDuration))
	}
	line(m.EvalCount > 0, "eval count", fmt.Sprintf("%d token(s)", m.EvalCount))
	if m.EvalDuration > 0 {
		line(true, "eval duration", m.EvalDuration)
		line(true, "eval rate", rate(m.EvalCount, m.EvalDuration))
	}
}
