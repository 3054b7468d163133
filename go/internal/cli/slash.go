package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
)

const helpMain = `Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load a session or model
  /save <model>   Save your current session
  /list           List models
  /clear          Clear session context
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use """ to begin a multi-line message.
`

const helpImages = `
Use the path of a .jpg, .png, or .webp image in a message to show it to the model.
`

const helpSet = `Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set system message
  /set history           Enable history
  /set nohistory         Disable history
  /set wordwrap          Enable wordwrap
  /set nowordwrap        Disable wordwrap
  /set format json       Enable JSON mode
  /set noformat          Disable formatting
  /set verbose           Show LLM stats
  /set quiet             Disable LLM stats
  /set think [level]     Enable thinking
  /set nothink           Disable thinking
`

const helpShow = `Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template
`

const helpShortcuts = `Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back (left) one word
   Alt + f            Move forward (right) one word
  Ctrl + k            Delete the sentence after the cursor
  Ctrl + u            Delete the sentence before the cursor
  Ctrl + w            Delete the word before the cursor
  Ctrl + j            Go on on a further line
  Ctrl + g            Go on in an editor (OLLAMA_EDITOR, VISUAL or EDITOR)

  Ctrl + l            Clear the screen
  Ctrl + c            Stop the model from responding
  Ctrl + d            Exit (/bye)
`

const helpParameters = `Available Parameters:
  /set parameter seed <int>             Random number seed
  /set parameter num_predict <int>      Max number of tokens to predict
  /set parameter top_k <int>            Pick from top k num of tokens
  /set parameter top_p <float>          Pick token based on sum of probabilities
  /set parameter min_p <float>          Pick token based on top token probability * min_p
  /set parameter num_ctx <int>          Set the context size
  /set parameter temperature <float>    Set creativity level
  /set parameter repeat_penalty <float> How strongly to penalize repetitions
  /set parameter repeat_last_n <int>    Set how far back to look for repetitions
  /set parameter stop <string> ...      Set the stop strings
`

// command carries out one slash command.
func (c *conversation) command(ctx context.Context, name, rest string) error {
	args := strings.Fields(rest)
	switch name {
	case "?", "help":
		return c.help(args)
	case "set":
		return c.set(args, rest)
	case "show":
		return c.show(ctx, args)
	case "list":
		return c.list(ctx, c.client, args)
	case "clear":
		c.opts.Messages = nil
		fmt.Fprintln(c.out, "Cleared session context")
		return nil
	case "load":
		return c.loadModel(ctx, args)
	case "save":
		return c.save(ctx, args)
	}
	return fmt.Errorf("unknown command '/%s'. Type /? for help", name)
}

func (c *conversation) help(args []string) error {
	text := helpMain
	if takesImages(c.info) {
		text += helpImages
	}
	if len(args) > 0 {
		switch strings.TrimPrefix(args[0], "/") {
		case "set":
			text = helpSet
		case "show":
			text = helpShow
		case "shortcut", "shortcuts":
			text = helpShortcuts
		}
	}
	_, err := fmt.Fprint(c.err, text, "\n")
	return err
}

// set carries out /set; rest is what follows it, with its blanks, for texts.
func (c *conversation) set(args []string, rest string) error {
	if len(args) == 0 {
		_, err := fmt.Fprint(c.err, helpSet, "\n")
		return err
	}
	said := ""
	switch args[0] {
	case "history":
		c.lines.KeepHistory(true)
	case "nohistory":
		c.lines.KeepHistory(false)
	case "wordwrap", "nowordwrap":
		c.opts.WordWrap = args[0] == "wordwrap"
		said = fmt.Sprintf("Set '%s' mode.", args[0])
	case "verbose", "quiet":
		c.opts.Verbose = args[0] == "verbose"
		said = fmt.Sprintf("Set '%s' mode.", args[0])
	case "think", "nothink":
		return c.setThink(args)
	case "format":
		if len(args) != 2 || args[1] != "json" {
			return errors.New("invalid or missing format. For 'json' mode use '/set format json'")
		}
		c.opts.Format = json.RawMessage(`"json"`)
		said = "Set format to 'json' mode."
	case "noformat":
		c.opts.Format = nil
		said = "Disabled format."
	case "parameter":
		return c.setParameter(args[1:])
	case "system":
		text := strings.TrimSpace(strings.TrimPrefix(rest, "system"))
		if text == "" {
			return errors.New("usage: /set system <message>")
		}
		c.opts.System = text
		said = "Set system message."
	default:
		return fmt.Errorf("unknown command '/set %s'. Type /? for help", args[0])
	}
	if said != "" {
		fmt.Fprintln(c.out, said)
	}
	return nil
}

func (c *conversation) setThink(args []string) error {
	value := "true"
	switch {
	case args[0] == "nothink":
		value = "false"
	case len(args) > 1:
		value = args[1]
	}
	think, err := parseThink(value)
	if err != nil {
		return fmt.Errorf("thinking level %q is not one of low, medium, high or max", value)
	}
	c.opts.Think = think
	if len(args) > 1 && args[0] == "think" {
		fmt.Fprintf(c.out, "Set 'think' mode to '%s'.\n", value)
		return nil
	}
	fmt.Fprintf(c.out, "Set '%s' mode.\n", args[0])
	return nil
}

func (c *conversation) setParameter(args []string) error {
	if len(args) < 2 {
		_, err := fmt.Fprint(c.err, helpParameters, "\n")
		return err
	}
	values, err := api.FormatParams(map[string][]string{args[0]: args[1:]})
	if err != nil {
		return fmt.Errorf("couldn't set parameter: %w", err)
	}
	maps.Copy(c.opts.Options, values)
	fmt.Fprintf(c.out, "Set parameter '%s' to '%s'\n", args[0], strings.Join(args[1:], ", "))
	return nil
}

func (c *conversation) show(ctx context.Context, args []string) error {
	if len(args) == 0 {
		_, err := fmt.Fprint(c.err, helpShow, "\n")
		return err
	}
	info, err := c.client.Show(ctx, &api.ShowRequest{Model: c.opts.Model})
	if err != nil {
		return err
	}
	text := ""
	switch args[0] {
	case "info":
		return writeInfo(c.out, info, false)
	case "license":
		text = orElse(info.License, "No license was specified for this model.")
	case "modelfile":
		text = info.Modelfile
	case "parameters":
		if info.Parameters != "" {
			fmt.Fprintf(c.out, "Model defined parameters:\n%s\n\n", indent(info.Parameters))
		}
		if len(c.opts.Options) > 0 {
			fmt.Fprintln(c.out, "User defined parameters:")
			for _, name := range slices.Sorted(maps.Keys(c.opts.Options)) {
				fmt.Fprintf(c.out, "  %-30s %v\n", name, c.opts.Options[name])
			}
			return nil
		}
		if info.Parameters != "" {
			return nil
		}
		text = "No parameters were specified for this model."
	case "system":
		text = orElse(c.opts.System, orElse(info.System, "No system message was specified for this model."))
	case "template":
		text = orElse(info.Template, "No prompt template was specified for this model.")
	default:
		return fmt.Errorf("unknown command '/show %s'. Type /? for help", args[0])
	}
	_, err = fmt.Fprintln(c.out, text)
	return err
}

func orElse(text, otherwise string) string {
	if text != "" {
		return text
	}
	return otherwise
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

// loadModel changes the model of the conversation, which begins anew.
func (c *conversation) loadModel(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: /load <modelname>")
	}
	opts := c.opts
	opts.Model, opts.Messages = args[0], nil
	fmt.Fprintf(c.out, "Loading model '%s'\n", opts.Model)
	info, err := c.client.Show(ctx, &api.ShowRequest{Model: opts.Model})
	if isStatus(err, http.StatusNotFound) {
		return fmt.Errorf("couldn't find model '%s'", opts.Model)
	}
	if err == nil {
		err = c.load(ctx, c.client, &opts)
	}
	if err != nil {
		return err
	}
	c.opts, c.info = opts, info
	c.showPastMessages()
	return nil
}

// save makes a model of the conversation.
func (c *conversation) save(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: /save <modelname>")
	}
	req := &api.CreateRequest{Model: args[0], From: c.opts.Model, System: c.opts.System, Parameters: c.opts.Options, Messages: c.opts.Messages}
	if err := c.client.Create(ctx, req, func(api.ProgressResponse) error { return nil }); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Created new model '%s'\n", args[0])
	return nil
}
