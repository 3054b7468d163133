package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ollmlx/ollmlx/go/internal/config"
)

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "serve",
		Aliases: []string{"start"},
		Short:   "Start the server",
		Long:    "Start the server.\n\nEnvironment variables:\n" + variableTable(),
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("not wired yet")
		},
	}
}

// variableTable is the documentation of the environment, made from what reads it.
func variableTable() string {
	var rows [][]string
	for _, v := range config.Vars() {
		meaning := v.Meaning
		if v.Default != "" {
			meaning += " (default " + v.Default + ")"
		}
		rows = append(rows, []string{v.Name, meaning})
	}
	var sb strings.Builder
	if err := writeTable(&sb, "  ", rows); err != nil {
		panic(err) // a strings.Builder does not fail
	}
	return strings.TrimRight(sb.String(), "\n")
}
