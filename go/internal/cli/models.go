package cli

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/format"
	"github.com/spf13/cobra"
)

// idLength is how many hex digits of a digest identify a model in listings.
const idLength = 12

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "list [PREFIX]",
		Aliases:           []string{"ls"},
		Short:             "List models",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeModels(1),
		RunE:              a.clientCommand(a.list),
	}
}

func (a *app) list(ctx context.Context, client *api.Client, args []string) error {
	list, err := client.List(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"NAME", "ID", "SIZE", "MODIFIED"}}
	for _, m := range list.Models {
		if !hasPrefix(m.Name, args) {
			continue
		}
		size := format.HumanBytes(m.Size)
		if m.RemoteModel != "" {
			size = "-"
		}
		rows = append(rows, []string{m.Name, shortID(m.Digest), size, format.HumanTime(m.ModifiedAt, "Never")})
	}
	return writeTable(a.out, "", rows)
}

func (a *app) psCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "ps [PREFIX]",
		Short:             "List running models",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeModels(1),
		RunE:              a.clientCommand(a.ps),
	}
}

func (a *app) ps(ctx context.Context, client *api.Client, args []string) error {
	list, err := client.ListRunning(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"}}
	for _, m := range list.Models {
		if !hasPrefix(m.Name, args) {
			continue
		}
		until := format.HumanTime(m.ExpiresAt, "Never")
		if time.Since(m.ExpiresAt) > 0 {
			until = "Stopping..."
		}
		rows = append(rows, []string{
			m.Name, shortID(m.Digest), format.HumanBytes(m.Size), processor(m.Size, m.SizeVRAM),
			strconv.Itoa(m.ContextLength), until,
		})
	}
	return writeTable(a.out, "", rows)
}

// processor tells how a model is divided between CPU and GPU.
func processor(size, vram int64) string {
	switch {
	case vram == 0:
		return "100% CPU"
	case vram == size:
		return "100% GPU"
	case vram > size || size == 0:
		return "Unknown"
	}
	cpu := int(math.Round(float64(size-vram) / float64(size) * 100))
	return fmt.Sprintf("%d%%/%d%% CPU/GPU", cpu, 100-cpu)
}

func hasPrefix(name string, args []string) bool {
	return len(args) == 0 || strings.HasPrefix(strings.ToLower(name), strings.ToLower(args[0]))
}

func shortID(digest string) string {
	digest = strings.TrimPrefix(digest, "sha256:")
	return digest[:min(idLength, len(digest))]
}

func (a *app) stopCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "stop MODEL",
		Short:             "Stop a running model",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeModels(1),
		RunE: a.clientCommand(func(ctx context.Context, client *api.Client, args []string) error {
			err := unload(ctx, client, args[0])
			if isStatus(err, http.StatusNotFound) {
				return fmt.Errorf("couldn't find model %q to stop", args[0])
			}
			return err
		}),
	}
}

// unload asks the server to take a model out of memory now; it is no error if the model is not loaded.
func unload(ctx context.Context, client *api.Client, name string) error {
	req := &api.GenerateRequest{Model: name, KeepAlive: &api.Duration{}}
	return client.Generate(ctx, req, func(api.GenerateResponse) error { return nil })
}

func (a *app) copyCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "cp SOURCE DESTINATION",
		Short:             "Copy a model",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeModels(1),
		RunE: a.clientCommand(func(ctx context.Context, client *api.Client, args []string) error {
			if err := client.Copy(ctx, &api.CopyRequest{Source: args[0], Destination: args[1]}); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "copied '%s' to '%s'\n", args[0], args[1])
			return nil
		}),
	}
}

func (a *app) removeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rm MODEL [MODEL...]",
		Short:             "Remove models",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeModels(0),
		RunE:              a.clientCommand(a.remove),
	}
}

func (a *app) remove(ctx context.Context, client *api.Client, args []string) error {
	for _, name := range args {
		// A running model holds files that removing would take away; that it is unknown is for Delete to say.
		if err := unload(ctx, client, name); err != nil && !isStatus(err, http.StatusNotFound) {
			fmt.Fprintf(a.err, "Warning: unable to stop model '%s': %v\n", name, err)
		}
		if err := client.Delete(ctx, &api.DeleteRequest{Model: name}); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "deleted '%s'\n", name)
	}
	return nil
}
