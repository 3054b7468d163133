package store

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"golang.org/x/mod/semver"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/prompt"
	"github.com/ollmlx/ollmlx/go/internal/version"
)

// checkSettings checks what a request says beside the model's files.
func (c *creation) checkSettings() error {
	if c.req.Template != "" {
		if _, err := prompt.Parse(c.req.Template); err != nil {
			return err
		}
	}
	if err := prompt.CheckNames(c.req.Renderer, c.req.Parser); err != nil {
		return err
	}
	if c.req.Requires != "" && !semver.IsValid(versionOf(c.req.Requires)) {
		return errdefs.New(errdefs.ErrInvalid, "requires must be a valid semver (e.g. 0.14.0)")
	}
	if _, err := licenses(c.req.License); err != nil {
		return err
	}
	if _, err := parameters(c.req.Parameters); err != nil {
		return err
	}
	// On a copy: the base is not known yet.
	return (&creation{req: c.req}).applyInfo()
}

// apply adds the request's settings to those of the base: parameters are merged and the new ones win, template, system
// prompt and messages are replaced, licenses are added.
func (c *creation) apply() error {
	if c.req.Template != "" {
		if err := c.replace(mediaTemplate, []byte(c.req.Template)); err != nil {
			return err
		}
	}
	if c.req.System != "" {
		if err := c.replace(mediaSystem, []byte(c.req.System)); err != nil {
			return err
		}
	}
	texts, err := licenses(c.req.License)
	if err != nil {
		return err
	}
	for _, text := range texts {
		if err := c.append(mediaLicense, []byte(text)); err != nil {
			return err
		}
	}
	if err := c.applyParameters(); err != nil {
		return err
	}
	if len(c.req.Messages) > 0 {
		raw, err := json.Marshal(c.req.Messages)
		if err != nil {
			return err
		}
		if err := c.replace(mediaMessages, raw); err != nil {
			return err
		}
	}
	for have, want := range map[*string]string{
		&c.config.Renderer: c.req.Renderer, &c.config.Parser: c.req.Parser, &c.config.Requires: c.req.Requires,
	} {
		if want != "" {
			*have = want
		}
	}
	if err := c.checkParser(); err != nil {
		return err
	}
	c.config.Requires = strings.TrimPrefix(c.config.Requires, "v")
	if err := checkRequires(c.config.Requires); err != nil {
		return err
	}
	return c.applyInfo()
}

// checkParser refuses a parser that would never be used: who renders, parses.
func (c *creation) checkParser() error {
	rendered := slices.ContainsFunc(c.layers, func(l Layer) bool { return l.MediaType == mediaTemplate || l.MediaType == mediaPrompt })
	if c.req.Parser == "" || c.config.Renderer != "" || rendered {
		return nil
	}
	return errdefs.New(errdefs.ErrInvalid, "parser %q would have no effect: the model's prompts come from its tokenizer's chat template, and the runner "+
		"parses what it renders; give the model a renderer or a template too, or leave the parser out", c.req.Parser)
}

// versionOf is a version in the form of the semver package, which wants a "v" before it.
func versionOf(text string) string { return "v" + strings.TrimPrefix(text, "v") }

// checkRequires compares the version of Ollama that a model demands with the one that this server follows.
func checkRequires(requires string) error {
	if !semver.IsValid(versionOf(requires)) || semver.Compare(versionOf(requires), versionOf(version.OllamaAPI)) <= 0 {
		return nil
	}
	return errdefs.New(errdefs.ErrUnsupported, "the model requires version %s of Ollama, and this server follows version %s; update ollmlx", requires, version.OllamaAPI)
}

// CheckVersion refuses a model that requires a later version than this server follows.
func (m *Model) CheckVersion() error { return checkRequires(m.Config.Requires) }

// licenses accepts one text or a list of them.
func licenses(v any) ([]string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "license must be a string or a list of strings")
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		if one == "" {
			return nil, nil
		}
		return []string{one}, nil
	}
	var many []string
	if json.Unmarshal(raw, &many) != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "license must be a string or a list of strings")
	}
	return many, nil
}

// parameters brings the request's parameters into the types of JSON and checks them, so that a wrong one is told now
// and not at each request to the model.
func parameters(p map[string]any) (map[string]any, error) {
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "parameters: %v", err)
	}
	var plain map[string]any
	if err := json.Unmarshal(raw, &plain); err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "parameters: %v", err)
	}
	opts := api.DefaultOptions()
	if err := opts.FromMap(plain); err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "%v", err)
	}
	return plain, nil
}

func (c *creation) applyParameters() error {
	merged := map[string]any{}
	for _, l := range c.layers {
		if l.MediaType != mediaParams {
			continue
		}
		if err := c.store.readJSON(l.Digest, "parameters", &merged); err != nil {
			return errdefs.New(errdefs.ErrInvalid, "the base model is damaged: %v", err)
		}
	}
	own, err := parameters(c.req.Parameters)
	if err != nil {
		return err
	}
	maps.Copy(merged, own)
	if len(own) == 0 {
		return nil
	}
	raw, err := json.Marshal(merged)
	if err != nil {
		return err
	}
	return c.replace(mediaParams, raw)
}

// applyInfo takes over what the request's info says about the model, instead of what was found out.
func (c *creation) applyInfo() error {
	for key, value := range c.req.Info {
		var err error
		switch key {
		case "capabilities":
			err = infoList(key, value, &c.config.Capabilities)
		case "model_family":
			if err = infoString(key, value, &c.config.ModelFamily); err == nil {
				c.config.ModelFamilies = []string{c.config.ModelFamily}
			}
		case "base_name":
			err = infoString(key, value, &c.config.BaseName)
		case "quantization_level":
			err = infoString(key, value, &c.config.FileType)
		case "parameter_size":
			err = infoString(key, value, &c.config.ModelType)
		case "context_length":
			err = infoInt(key, value, &c.config.ContextLen)
		case "embedding_length":
			err = infoInt(key, value, &c.config.EmbedLen)
		default:
			err = errdefs.New(errdefs.ErrInvalid, "unknown info %q", clip(key))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func infoString(key string, value any, to *string) error {
	s, ok := value.(string)
	if !ok {
		return errdefs.New(errdefs.ErrInvalid, "info %q must be a string", key)
	}
	*to = s
	return nil
}

func infoInt(key string, value any, to *int) error {
	f, ok := value.(float64)
	if !ok || f < 0 || f > 1<<31 || f != float64(int(f)) {
		return errdefs.New(errdefs.ErrInvalid, "info %q must be a whole number", key)
	}
	*to = int(f)
	return nil
}

func infoList(key string, value any, to *[]string) error {
	list, ok := value.([]any)
	if !ok {
		return errdefs.New(errdefs.ErrInvalid, "info %q must be a list of strings", key)
	}
	texts := make([]string, len(list))
	for i, v := range list {
		if err := infoString(key, v, &texts[i]); err != nil {
			return errdefs.New(errdefs.ErrInvalid, "info %q must be a list of strings", key)
		}
	}
	*to = texts
	return nil
}
