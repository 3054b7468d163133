package cli

import (
	"context"

	"github.com/ollama/ollama/api"
	"github.com/spf13/cobra"
)

func (a *app) pushCommand() *cobra.Command {
	var insecure bool
	cmd := &cobra.Command{
		Use:               "push MODEL",
		Short:             "Push a model to a registry",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeModels(1),
		RunE: a.clientCommand(func(ctx context.Context, client *api.Client, args []string) error {
			p := a.newProgress()
			defer p.stop()
			return client.Push(ctx, &api.PushRequest{Model: args[0], Insecure: insecure}, func(r api.ProgressResponse) error {
				p.update(r, "pushing "+shortID(r.Digest)+":")
				return nil
			})
		}),
	}
	cmd.Flags().BoolVar(&insecure, "insecure", false, "use a registry over plain http")
	return cmd
}
