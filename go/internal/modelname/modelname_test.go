package modelname

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

var (
	part80  = strings.Repeat("8", 80)
	part81  = strings.Repeat("8", 81)
	host350 = strings.Repeat("h", 350)
	host351 = strings.Repeat("h", 351)
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string // host/namespace/model:tag; empty: invalid
		show string
	}{
		// Defaults.
		{"demo", "registry.ollama.ai/library/demo:latest", "demo:latest"},
		{"demo:latest", "registry.ollama.ai/library/demo:latest", "demo:latest"},
		{"library/demo", "registry.ollama.ai/library/demo:latest", "demo:latest"},
		{"registry.ollama.ai/library/demo", "registry.ollama.ai/library/demo:latest", "demo:latest"},
		{"Registry.Ollama.AI/library/demo:latest", "registry.ollama.ai/library/demo:latest", "demo:latest"},
		{"https://registry.ollama.ai/library/demo", "registry.ollama.ai/library/demo:latest", "demo:latest"},
		{"qwen3:0.6b", "registry.ollama.ai/library/qwen3:0.6b", "qwen3:0.6b"},
		{"UPPER", "registry.ollama.ai/library/UPPER:latest", "UPPER:latest"},
		{"m", "registry.ollama.ai/library/m:latest", "m:latest"},
		{"_x", "registry.ollama.ai/library/_x:latest", "_x:latest"},
		{"user/model", "registry.ollama.ai/user/model:latest", "user/model:latest"},
		{"user/model:Q4_K_M", "registry.ollama.ai/user/model:Q4_K_M", "user/model:Q4_K_M"},
		{"registry.ollama.ai/user/model", "registry.ollama.ai/user/model:latest", "user/model:latest"},

		// One model of the hub, in all its forms.
		{"mlx-community/X", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"mlx-community/X:latest", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"MLX-Community/X", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"hf.co/mlx-community/X", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"HF.co/MLX-COMMUNITY/X:latest", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"huggingface.co/mlx-community/X", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"www.huggingface.co/mlx-community/X", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"https://huggingface.co/mlx-community/X", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"HTTPS://HuggingFace.co/mlx-community/X", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"https://hf.co/mlx-community/X:latest", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"mlx-community/Qwen3-0.6B-4bit:8bit", "hf.co/mlx-community/Qwen3-0.6B-4bit:8bit", "mlx-community/Qwen3-0.6B-4bit:8bit"},
		// Other organisations of the hub need their host.
		{"hf.co/Qwen/Qwen3-0.6B-GGUF:Q8_0", "hf.co/Qwen/Qwen3-0.6B-GGUF:Q8_0", "hf.co/Qwen/Qwen3-0.6B-GGUF:Q8_0"},
		{"huggingface.co/Qwen/Qwen3-0.6B", "hf.co/Qwen/Qwen3-0.6B:latest", "hf.co/Qwen/Qwen3-0.6B:latest"},
		// Revisions.
		{"mlx-community/X@v1.0", "hf.co/mlx-community/X:v1.0", "mlx-community/X:v1.0"},
		{"mlx-community/X@main", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"MLX-Community/X@0123456789abcdef0123456789abcdef01234567", "hf.co/mlx-community/X:0123456789abcdef0123456789abcdef01234567", "mlx-community/X:0123456789abcdef0123456789abcdef01234567"},
		{"Qwen/Qwen3-0.6B@main", "hf.co/Qwen/Qwen3-0.6B:latest", "hf.co/Qwen/Qwen3-0.6B:latest"},
		{"hf.co/Qwen/Qwen3-0.6B@Dev_2", "hf.co/Qwen/Qwen3-0.6B:Dev_2", "hf.co/Qwen/Qwen3-0.6B:Dev_2"},
		{"https://huggingface.co/Qwen/Qwen3-0.6B@dev", "hf.co/Qwen/Qwen3-0.6B:dev", "hf.co/Qwen/Qwen3-0.6B:dev"},
		{"https://huggingface.co/mlx-community/X/", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"https://huggingface.co/mlx-community/X/tree/main", "hf.co/mlx-community/X:latest", "mlx-community/X:latest"},
		{"https://hf.co/Qwen/X/tree/v2", "hf.co/Qwen/X:v2", "hf.co/Qwen/X:v2"},
		{"mlx-community/X:4bit@main", "", ""},
		{"mlx-community/X@", "", ""},
		{"mlx-community/X@a@b", "", ""},
		{"mlx-community/X@refs/pr/1", "", ""},
		{"mlx-community/X@../y", "", ""},
		{"mlx-community/X@a b", "", ""},
		{"example.com/org/X@main", "", ""},
		{"registry.ollama.ai/org/X@main", "", ""},
		{"mlx-community/X@sha256:" + strings.Repeat("0", 64), "", ""},
		{"https://huggingface.co/mlx-community/X/blob/main/config.json", "", ""},
		{"https://huggingface.co/datasets/org/X", "", ""},
		{"https://huggingface.co/org/X/tree/../y", "", ""},
		{"https://huggingface.co/org/X//", "", ""},
		// A host that was given is never replaced.
		{"registry.ollama.ai/mlx-community/X", "registry.ollama.ai/mlx-community/X:latest", "registry.ollama.ai/mlx-community/X:latest"},
		{"example.com/mlx-community/X", "example.com/mlx-community/X:latest", "example.com/mlx-community/X:latest"},
		// Underscore forms and look-alikes are ordinary names.
		{"mlx-community_X", "registry.ollama.ai/library/mlx-community_X:latest", "mlx-community_X:latest"},
		{"mlx_community/X", "registry.ollama.ai/mlx_community/X:latest", "mlx_community/X:latest"},
		{"mlx-community2/X", "registry.ollama.ai/mlx-community2/X:latest", "mlx-community2/X:latest"},
		{"my-mlx", "registry.ollama.ai/library/my-mlx:latest", "my-mlx:latest"},
		{"library/mlx-community", "registry.ollama.ai/library/mlx-community:latest", "mlx-community:latest"},

		// Other registries.
		{"localhost:5000/ns/model", "localhost:5000/ns/model:latest", "localhost:5000/ns/model:latest"},
		{"http://localhost:5000/ns/model:tag", "localhost:5000/ns/model:tag", "localhost:5000/ns/model:tag"},
		{"Example.COM/Ns/Model:Tag", "example.com/Ns/Model:Tag", "example.com/Ns/Model:Tag"},

		// Lengths.
		{host350 + "/" + part80 + "/" + part80 + ":" + part80, host350 + "/" + part80 + "/" + part80 + ":" + part80, host350 + "/" + part80 + "/" + part80 + ":" + part80},
		{host351 + "/n/m", "", ""},
		{"h/" + part81 + "/m", "", ""},
		{"h/n/" + part81, "", ""},
		{"m:" + part81, "", ""},

		// Nothing, empty parts, too many parts.
		{"", "", ""},
		{":", "", ""},
		{"m:", "", ""},
		{":tag", "", ""},
		{"/", "", ""},
		{"/m", "", ""},
		{"n/", "", ""},
		{"//m", "", ""},
		{"/n/m", "", ""},
		{"h//m", "", ""},
		{"h/n/m/t", "", ""},
		{"a/b/c/d/e", "", ""},
		{"n/m:a:b", "", ""},
		{"hf.co/X", "", ""},
		{"https://mlx-community/X", "", ""},
		{"https://X", "", ""},

		// Traversal.
		{"..", "", ""},
		{".", "", ""},
		{"../m", "", ""},
		{"../../etc/passwd", "", ""},
		{"h/../m", "", ""},
		{"h/n/..:t", "", ""},
		{"m:..", "", ""},
		{"a..b", "", ""},
		{"a..b/n/m", "", ""},
		{"/etc/passwd", "", ""},
		{`n\m`, "", ""},
		{"m\x00", "", ""},
		{".hidden", "", ""},
		{"m:.t", "", ""},
		{"na.me/m", "", ""},

		// Characters, spaces, digests, schemes.
		{" demo", "", ""},
		{"demo ", "", ""},
		{"demo\n", "", ""},
		{"de mo", "", ""},
		{"-m", "", ""},
		{"m@sha256:" + strings.Repeat("0", 64), "", ""},
		{"m@main", "", ""},
		{"modèle", "", ""},
		{"m?x=1", "", ""},
		{"m%2e", "", ""},
		{"ftp://example.com/n/m", "", ""},
		{"file:///n/m", "", ""},
		{"://h/n/m", "", ""},
		{"regiſtry.ollama.ai/library/m", "", ""},
	} {
		t.Run(tt.in, func(t *testing.T) {
			n, err := Parse(tt.in)
			if tt.want == "" {
				if !errors.Is(err, errdefs.ErrInvalid) || err.Error() != "invalid model name" {
					t.Fatalf("got %q, %v, want an invalid name", n, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := n.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if got := Display(n); got != tt.show {
				t.Errorf("Display: got %q, want %q", got, tt.show)
			}
			if got := Key(n); got != strings.ToLower(tt.want) {
				t.Errorf("Key: got %q", got)
			}
		})
	}
}

func TestParseKeepsTheScheme(t *testing.T) {
	for in, want := range map[string]string{
		"demo":                    "https",
		"https://example.com/n/m": "https",
		"HTTP://example.com/n/m":  "http",
	} {
		n, err := Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if n.ProtocolScheme != want {
			t.Errorf("%s: got scheme %q, want %q", in, n.ProtocolScheme, want)
		}
	}
}

// Models stored by other programs may have an organisation in any case; it is shown as stored and found all the same.
func TestDisplayKeepsStoredCase(t *testing.T) {
	n := model.Name{Host: "hf.co", Namespace: "MLX-community", Model: "X", Tag: "latest"}
	shown := Display(n)
	if shown != "MLX-community/X:latest" {
		t.Errorf("got %q", shown)
	}
	back, err := Parse(shown)
	if err != nil || Key(back) != Key(n) {
		t.Errorf("got %v, %v", back, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"demo", "a/b", "a/b@c", "https://hf.co/a/b/tree/c", "h/n/m:t", "https://huggingface.co/mlx-community/X", "MLX-Community/x:latest", "localhost:5000/n/m",
		"../../x", "a..b", "m@sha256:00", "h/n/m/t", "", ":", "http://h:1/n/m:t", "regiſtry.ollama.ai/library/m",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Fatalf("%q: error of another kind: %v", s, err)
			}
			return
		}
		for _, form := range []string{n.String(), Display(n), Key(n), strings.ToUpper(n.String())} {
			again, err := Parse(form)
			if err != nil {
				t.Fatalf("%q became %q, which is invalid", s, form)
			}
			if Key(again) != Key(n) {
				t.Fatalf("%q became %q, then %q", s, n, again)
			}
		}
		p := n.Filepath()
		if !filepath.IsLocal(p) || filepath.Clean(p) != p || strings.Count(p, string(filepath.Separator)) != 3 || strings.Contains(p, "..") {
			t.Fatalf("%q became the path %q", s, p)
		}
	})
}
