package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

// absentCommands are commands of Ollama that this program leaves out. Each says so in one line, so that nobody wonders
// whether a name was misspelt.
func absentCommands() (commands []*cobra.Command) {
	absent := func(use, why string) {
		commands = append(commands, &cobra.Command{
			Use: use, Short: why, Hidden: true,
			DisableFlagParsing: true, // whatever follows, the answer is the same
			RunE:               func(*cobra.Command, []string) error { return errors.New(why) },
		})
	}
	const accounts = "there are no accounts: ollmlx runs models on this machine and does not use Ollama's cloud; for Hugging Face, see "
	absent("signin", accounts+"\"ollmlx login\"")
	absent("signout", accounts+"\"ollmlx logout\"")
	absent("launch", "ollmlx does not set up other programs: let them use its address as they would use Ollama's")
	return commands
}
