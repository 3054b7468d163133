package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollama/ollama/parser"
)

// No Modelfile makes the reader panic, and what it names stays where it says.
func FuzzReadModelfile(f *testing.F) {
	dir := f.TempDir()
	for name, content := range map[string]string{"model.gguf": "GGUF", "config.json": "{}", "model.safetensors": "x", "adapter.safetensors": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	for _, text := range []string{
		"FROM demo", "FROM .", "FROM model.gguf\nADAPTER adapter.safetensors", "from demo\nparameter top_k 5\nPARAMETER stop \"a\"\nPARAMETER stop b",
		"FROM demo\nSYSTEM \"\"\"\nmany\nlines\n\"\"\"\nTEMPLATE {{ .Prompt }}\nLICENSE MIT\nMESSAGE user hi\nMESSAGE assistant \"ho\"",
		"FROM demo\nRENDERER r\nPARSER p\nREQUIRES 0.1.0\n# comment\n", "PARAMETER num_ctx x\nFROM demo", "FROM demo\nMESSAGE nobody hi", "FROM demo\nPARAMETER mirostat 1",
		"\xef\xbb\xbfFROM demo", "\xff\xfeF\x00R\x00O\x00M\x00 \x00x\x00", "FROM demo\nSYSTEM \"\"\"open", "", "FROM", "FROM demo\nNONSENSE x", "FROM demo\nPARAMETER temperature 1e400",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		// Files of this machine are not the subject.
		if m, err := parser.ParseFile(strings.NewReader(text)); err == nil {
			for _, c := range m.Commands {
				if (c.Name == "model" || c.Name == "adapter") && (strings.ContainsAny(c.Args, `/\~`) || strings.Contains(c.Args, "..")) {
					t.Skip()
				}
			}
		}
		got, err := readModelfile(strings.NewReader(text), dir)
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Errorf("%q: an error without a text", text)
			}
			return
		}
		if (got.request.From == "") == (len(got.files) == 0) {
			t.Errorf("%q: from %q and %d files", text, got.request.From, len(got.files))
		}
		for name, path := range got.files {
			if !filepath.IsLocal(name) || !strings.HasPrefix(path, dir) {
				t.Errorf("%q: %s is %s", text, name, path)
			}
		}
	})
}
