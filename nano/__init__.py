"""How the small model that ships inside Nearfield is made: data, training, evaluation. Not part of the wheel."""
