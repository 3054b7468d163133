package mlxmodel

import "testing"

func TestPlainJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":1}`: `{"a":1}`,
		`{"a":[0.0, Infinity],"b":-Infinity,"c":NaN}`: `{"a":[0.0, null],"b":null,"c":null}`,
		`{"NaN":"Infinity \" NaN","x":NaN}`:           `{"NaN":"Infinity \" NaN","x":null}`,
		`"NaN`:                                        `"NaN`,
		`"NaN\`:                                       `"NaN\`,
		`NaN`:                                         `null`,
	} {
		if got := string(plainJSON([]byte(in))); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
