package mlxmodel

import (
	"bytes"
	"encoding/json"
	"math"
	"regexp"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// modelTypeSyntax is what a model_type may look like. The engine makes a module's name of it, so a dot could reach
// into modules that are no models.
var modelTypeSyntax = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$`)

// config is config.json: each value may be missing, null, or of a type that nobody expects, without harm to the others.
type config map[string]json.RawMessage

func parseConfig(path string, raw []byte) (config, error) {
	var c config
	if err := json.Unmarshal(plainJSON(raw), &c); err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "%s is no JSON object: %v", path, err)
	}
	return c, nil
}

// text returns the part of the configuration that describes the language model, which multimodal models nest.
func (c config) text() config {
	for _, key := range []string{"text_config", "llm_config", "language_config"} {
		if sub := c.object(key); len(sub) > 0 {
			return sub
		}
	}
	return c
}

func (c config) object(key string) config {
	var sub config
	if json.Unmarshal(c[key], &sub) != nil {
		return nil
	}
	return sub
}

func (c config) string(key string) string {
	var s string
	if json.Unmarshal(c[key], &s) != nil {
		return ""
	}
	return s
}

// strings returns a list of strings; one string counts as a list of it.
func (c config) strings(key string) []string {
	var list []string
	if json.Unmarshal(c[key], &list) == nil {
		return list
	}
	if one := c.string(key); one != "" {
		return []string{one}
	}
	return nil
}

// number returns the first of the keys that holds a positive number.
func (c config) number(keys ...string) float64 {
	for _, key := range keys {
		var f float64
		if raw, ok := c[key]; ok && json.Unmarshal(raw, &f) == nil && f > 0 {
			return f
		}
	}
	return 0
}

// count is number for what is counted: a whole number that fits anywhere.
func (c config) count(keys ...string) int {
	f := c.number(keys...)
	if f != math.Trunc(f) || f > math.MaxInt32 {
		return 0
	}
	return int(f)
}

// has reports whether the key holds anything but null.
func (c config) has(key string) bool {
	raw, ok := c[key]
	return ok && !bytes.Equal(raw, []byte("null"))
}

// plainJSON replaces the literals NaN, Infinity and -Infinity, which Python writes into JSON although JSON has none, by
// null. Configurations of several state-space models have them.
func plainJSON(raw []byte) []byte {
	if !bytes.Contains(raw, []byte("NaN")) && !bytes.Contains(raw, []byte("Infinity")) {
		return raw
	}
	out := make([]byte, 0, len(raw))
	inString := false
	for i := 0; i < len(raw); i++ {
		b := raw[i]
		if inString {
			out = append(out, b)
			switch {
			case b == '\\' && i+1 < len(raw):
				i++
				out = append(out, raw[i])
			case b == '"':
				inString = false
			}
			continue
		}
		if n := literal(raw[i:]); n > 0 {
			out = append(out, "null"...)
			i += n - 1
			continue
		}
		inString = b == '"'
		out = append(out, b)
	}
	return out
}

func literal(b []byte) int {
	for _, l := range []string{"NaN", "Infinity", "-Infinity"} {
		if bytes.HasPrefix(b, []byte(l)) {
			return len(l)
		}
	}
	return 0
}
