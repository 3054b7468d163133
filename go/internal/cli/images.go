package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"
)

// maxImageBytes bounds an image that a prompt names.
const maxImageBytes = 100 << 20

// imageTypes are what a model can be shown.
var imageTypes = []string{"image/jpeg", "image/png", "image/webp"}

// imageEnd finds where the path of an image may end.
var imageEnd = regexp.MustCompile(`(?i)\.(?:jpe?g|png|webp)\b`)

// word finds what stands between blanks.
var word = regexp.MustCompile(`\S+`)

// takesImages reports whether a model can see.
func takesImages(info *api.ShowResponse) bool {
	return slices.Contains(info.Capabilities, model.CapabilityVision) || len(info.ProjectorInfo) > 0
}

// withImages takes the images out of a prompt that it names by their paths, and tells the user of each. A path of a
// file that does not exist stays text.
func (a *app) withImages(prompt string) (rest string, images []api.ImageData, err error) {
	var text strings.Builder
	for {
		at, end, path := findImage(prompt)
		if path == "" {
			text.WriteString(prompt)
			return strings.TrimSpace(text.String()), images, nil
		}
		data, err := readImage(path)
		if err != nil {
			return "", nil, fmt.Errorf("couldn't add image '%s': %w", path, err)
		}
		fmt.Fprintf(a.err, "Added image '%s'\n", path)
		images = append(images, data)
		text.WriteString(prompt[:at])
		prompt = prompt[end:]
	}
}

// findImage returns the first path of an existing image in text and where it stands. A path has a slash in its first
// word. It may be quoted, and its blanks may stand behind backslashes, as terminals write a file that is dropped on
// them, or as they are.
func findImage(text string) (at, end int, path string) {
	for _, w := range word.FindAllStringIndex(text, -1) {
		if !strings.ContainsAny(text[w[0]:w[1]], `/\`) {
			continue
		}
		line, _, _ := strings.Cut(text[w[0]:], "\n")
		quote := ""
		if line[0] == '"' || line[0] == '\'' {
			quote, line = line[:1], line[1:]
		}
		for _, e := range imageEnd.FindAllStringIndex(line, -1) {
			if path := imagePath(line[:e[1]]); path != "" {
				end := w[0] + len(quote) + e[1]
				if quote != "" && strings.HasPrefix(text[end:], quote) {
					end++
				}
				return w[0], end, path
			}
		}
	}
	return 0, 0, ""
}

var escaped = regexp.MustCompile(`\\([^A-Za-z0-9])`)

// imagePath returns the path of the file that the user wrote as name, "" if there is none.
func imagePath(name string) string {
	unescaped := escaped.ReplaceAllString(name, "$1")
	for _, path := range []string{name, unescaped} {
		if rest, ok := strings.CutPrefix(path, "~/"); ok {
			if home, err := os.UserHomeDir(); err == nil {
				path = filepath.Join(home, rest)
			}
		}
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			return path
		}
	}
	return ""
}

func readImage(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxImageBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxImageBytes {
		return nil, errors.New("it is larger than 100 MB")
	}
	if found := http.DetectContentType(data); !slices.Contains(imageTypes, found) {
		return nil, fmt.Errorf("it holds %s, and not a JPEG, PNG or WebP image", found)
	}
	return data, nil
}
