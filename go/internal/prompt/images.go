package prompt

import (
	"fmt"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/model/renderers"
)

func init() {
	// Renderers that know images write the same tags as tagged: what stands for an image is the runner's business.
	renderers.RenderImgTags = true
}

// tagged returns messages whose text says where their images are, as in Ollama: the tag of each, numbered through all
// messages, takes the place of an [img] in the text, or goes before it.
func tagged(msgs []api.Message) []api.Message {
	out, next := make([]api.Message, len(msgs)), 0
	for i, m := range msgs {
		before, text := "", m.Content
		for range m.Images {
			tag := fmt.Sprintf("[img-%d]", next)
			next++
			if strings.Contains(text, "[img]") {
				text = strings.Replace(text, "[img]", tag, 1)
			} else {
				before += tag
			}
		}
		m.Content = before + text
		out[i] = m
	}
	return out
}
