package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/format"
	"github.com/spf13/cobra"
)

// excerptLines is how many lines of a long text the overview shows.
const excerptLines = 2

func (a *app) showCommand() *cobra.Command {
	parts := []struct {
		name, usage string
		print       func(*api.ShowResponse)
		wanted      bool
	}{
		{name: "license", usage: "show license of a model", print: func(r *api.ShowResponse) { fmt.Fprintln(a.out, r.License) }},
		{name: "modelfile", usage: "show Modelfile of a model", print: func(r *api.ShowResponse) { fmt.Fprintln(a.out, r.Modelfile) }},
		{name: "parameters", usage: "show parameters of a model", print: func(r *api.ShowResponse) { fmt.Fprintln(a.out, r.Parameters) }},
		{name: "template", usage: "show template of a model", print: func(r *api.ShowResponse) { fmt.Fprint(a.out, r.Template) }},
		{name: "system", usage: "show system message of a model", print: func(r *api.ShowResponse) { fmt.Fprint(a.out, r.System) }},
	}
	var verbose bool
	cmd := &cobra.Command{
		Use:               "show MODEL",
		Short:             "Show information for a model",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeModels(1),
	}
	for i := range parts {
		cmd.Flags().BoolVar(&parts[i].wanted, parts[i].name, false, parts[i].usage)
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show detailed model information")
	cmd.RunE = a.clientCommand(func(ctx context.Context, client *api.Client, args []string) error {
		print := func(*api.ShowResponse) {}
		wanted := 0
		for _, part := range parts {
			if part.wanted {
				wanted++
				print = part.print
			}
		}
		if wanted > 1 {
			return errors.New("only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified")
		}
		resp, err := client.Show(ctx, &api.ShowRequest{Model: args[0], Verbose: verbose})
		if err != nil {
			return err
		}
		if wanted == 1 {
			print(resp)
			return nil
		}
		return writeInfo(a.out, resp, verbose)
	})
	return cmd
}

// writeInfo prints the overview of a model, one indented table for each kind of fact.
func writeInfo(w io.Writer, r *api.ShowResponse, verbose bool) error {
	type section struct {
		title string
		rows  [][]string
	}
	var capabilities [][]string
	for _, capability := range r.Capabilities {
		capabilities = append(capabilities, []string{capability.String()})
	}
	sections := []section{
		{"Model", modelRows(r)},
		{"Capabilities", capabilities},
		{"Projector", metadataRows(r.ProjectorInfo)},
		{"Parameters", parameterRows(r.Parameters)},
	}
	if verbose {
		sections = append(sections, section{"Metadata", metadataRows(r.ModelInfo)}, section{"Tensors", tensorRows(r.Tensors)})
	}
	sections = append(sections, section{"System", excerpt(r.System)}, section{"License", excerpt(r.License)})
	for _, s := range sections {
		if len(s.rows) == 0 {
			continue
		}
		fmt.Fprintf(w, "  %s\n", s.title)
		if err := writeTable(w, "    ", s.rows); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	return nil
}

func modelRows(r *api.ShowResponse) (rows [][]string) {
	add := func(label, value string) {
		if value != "" {
			rows = append(rows, []string{label, value})
		}
	}
	add("Remote model", r.RemoteModel)
	add("Remote URL", r.RemoteHost)
	architecture, _ := r.ModelInfo["general.architecture"].(string)
	parameters := r.Details.ParameterSize
	if n, ok := r.ModelInfo["general.parameter_count"].(float64); ok && parameters == "" {
		parameters = format.HumanNumber(uint64(n))
	}
	add("architecture", orElse(architecture, r.Details.Family))
	add("parameters", parameters)
	add("context length", number(r.ModelInfo[architecture+".context_length"]))
	add("embedding length", number(r.ModelInfo[architecture+".embedding_length"]))
	add("quantization", r.Details.QuantizationLevel)
	if kind, ok := r.ModelInfo["adapter.type"].(string); ok {
		add("adapter", kind+", rank "+number(r.ModelInfo["adapter.lora.rank"]))
	}
	add("requires", r.Requires)
	return rows
}

func parameterRows(text string) (rows [][]string) {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			rows = append(rows, []string{name, strings.TrimSpace(value)})
		}
	}
	return rows
}

func metadataRows(info map[string]any) (rows [][]string) {
	for _, key := range slices.Sorted(maps.Keys(info)) {
		rows = append(rows, []string{key, metadataValue(info[key])})
	}
	return rows
}

func tensorRows(tensors []api.Tensor) (rows [][]string) {
	for _, t := range tensors {
		rows = append(rows, []string{t.Name, t.Type, fmt.Sprint(t.Shape)})
	}
	return rows
}

func excerpt(text string) (rows [][]string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case len(rows) == excerptLines:
			return append(rows, []string{"..."})
		default:
			rows = append(rows, []string{line})
		}
	}
	return rows
}

func number(value any) string {
	n, ok := value.(float64)
	if !ok {
		return ""
	}
	return strconv.FormatFloat(n, 'f', -1, 64)
}

// metadataValue prints any JSON value in one cell; of a long list only the beginning.
func metadataValue(value any) string {
	const shown = 3
	switch v := value.(type) {
	case float64:
		return number(v)
	case []any:
		if len(v) > shown {
			return strings.TrimSuffix(fmt.Sprint(v[:shown]), "]") + fmt.Sprintf(" ...+%d more]", len(v)-shown)
		}
		return fmt.Sprint(v)
	case nil:
		return ""
	}
	return fmt.Sprint(value)
}
