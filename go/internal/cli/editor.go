package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// edit lets the user change text in an editor of their choice and returns what they saved.
func (a *app) edit(text string) (string, error) {
	f, err := os.CreateTemp("", "ollmlx-message-*.txt") // for its owner's eyes only
	if err != nil {
		return "", fmt.Errorf("making a file for the editor: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("writing the file for the editor: %w", err)
	}
	// By a shell, because the setting may have arguments and quotes, as in `code --wait`.
	cmd := exec.Command("sh", "-c", a.config.Editor+` "$1"`, "sh", f.Name())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("the editor %q failed: %w; choose another one with OLLAMA_EDITOR", a.config.Editor, err)
	}
	edited, err := os.ReadFile(f.Name())
	if err != nil {
		return "", fmt.Errorf("reading what the editor saved: %w", err)
	}
	return strings.TrimRight(string(edited), "\r\n"), nil
}
